-- The parts of a grant: how it ended ('': it has not, '~': declined, '!': expired, '-': else), its fence, token, host and worker.
--@include grant_parts
local function grant_of(text, port)
  local ended, fence, token, host, worker = grant_parts(text)
  if not fence then
    bad(tokens_key, 'has a garbled field ' .. port)
  end
  return ended, fence, token, host, worker
end
