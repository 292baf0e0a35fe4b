-- The end of every script: runs `run` with its three ways to Redis (`read` and `call` stop the script where a command
-- fails, `try` answers with the error) and turns what stopped it into an error reply of one line. What Lua itself says
-- (a word of a call or of a key was no number, say) is told with the last key that was read, without line numbers.
local ok, reply = pcall(run, redis.call, redis.call, redis.pcall)
if ok then
  return reply
end
local text = tostring(type(reply) == 'table' and reply.err or reply)
-- Redis 7.0 says of an ACL rule that it forbids a "command" or its "arguments": that is no wrong argument of ours.
local forbidden = string.find(text, 'The user executing the script', 1, true)
local said_by_lua = type(reply) == 'string' and string.match(reply, '^[^@ ]+:%d+: (.*)')
local wrong_type = string.find(text, 'WRONGTYPE', 1, true)
local odd_words = not forbidden and (said_by_lua or string.find(text, '^ERR .* is not ') or string.find(text, '^ERR .* arg'))
if wrong_type or odd_words then
  -- Which key it was is found by reading once more, up to the first write: to remember it at every read costs every call.
  local key = KEYS[1] or ''
  local function remembered(command, ...)
    key = ... or key
    return redis.call(command, ...)
  end
  local function stopped()
    error('', 0)
  end
  pcall(run, remembered, stopped, stopped)
  text = wrong_type and sentence(key, WRONG_TYPE)
    or 'ALLOC a script stopped before it wrote anything (' .. (said_by_lua or text) .. '): it was called with other words than '
    .. 'portlease sends, or ' .. key .. ' holds what portlease did not write'
end
return redis.error_reply((string.gsub(text, '[\r\n]+', ' ')))
