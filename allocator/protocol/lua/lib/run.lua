-- The end of every script: runs `run` and turns what stopped it into an error reply of one line. What Lua itself says
-- (a word of a call or of a key was no number, say) is told with the last key that was read, without line numbers.
local ok, reply = pcall(run)
if ok then
  return reply
end
local text = tostring(type(reply) == 'table' and reply.err or reply)
-- Redis 7.0 says of an ACL rule that it forbids a "command" or its "arguments": that is no wrong argument of ours.
local forbidden = string.find(text, 'The user executing the script', 1, true)
local said_by_lua = type(reply) == 'string' and string.match(reply, '^[^@ ]+:%d+: (.*)')
local key = key_read or KEYS[1] or ''
if string.find(text, 'WRONGTYPE', 1, true) then
  text = sentence(key, 'holds a value of the wrong type')
elseif not forbidden and (said_by_lua or string.find(text, '^ERR .* is not ') or string.find(text, '^ERR .* arg')) then
  text = 'ALLOC a script stopped before it wrote anything (' .. (said_by_lua or text) .. '): it was called with other words than '
    .. 'portlease sends, or ' .. key .. ' holds what portlease did not write'
end
return redis.error_reply((string.gsub(text, '[\r\n]+', ' ')))
