-- grants: the hash of tokens of a namespace of ports, port → `<fence> <token> <host> <worker>` of its last grant, with a
-- mark before it once that has ended: `~` declined, `!` expired (its holder may still re-assert it), `=` by an operator, `-`
-- otherwise.

--@include base
--@include events

-- The mark ('' for a grant that has not ended), fence, token, host and worker of a grant.
local function grant_of(text, key, port)
  local mark, fence, token, host, worker = string.match(text, '^([-~!=]?)(%d+) (%x+) (%S+) (%S+)$')
  if not fence then
    bad(key, 'has a garbled field ' .. port)
  end
  return mark, fence, token, host, worker
end

-- Ends a grant in all indexes but its port's score, which shows why it ended; `text` is the grant as it was.
local function close_grant(call, try, base, tokens_key, kind, port, text, fence, host, worker)
  call('HSET', tokens_key, port, (kind == 'declined' and '~' or kind == 'expired' and '!' or '-') .. text)
  call('ZREM', service_key(base, worker), host .. ':' .. port)
  record_event(try, base, kind, host, port, worker, fence)
end
