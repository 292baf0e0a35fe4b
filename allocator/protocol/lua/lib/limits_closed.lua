-- Ends that the count of a limit found and nobody had seen (see limits), told before the grant that they make room for.
if #more.closing > 0 then
  --@include service_key
  --@include close
  local own_tokens = tokens_key
  for _, it in ipairs(more.closing) do
    if call('HGET', it[1], it[2]) == it[3] then
      local its_fence, its_host, its_worker = match(it[3], '^(%d+) %x+ (%S+) (%S+)$')
      tokens_key = it[1]
      close_grant('expired', it[2], it[3], its_fence, its_host, its_worker)
    end
  end
  tokens_key = own_tokens
end
