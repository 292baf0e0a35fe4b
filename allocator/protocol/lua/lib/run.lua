-- The end of every script: runs `run` and turns what stopped it into an error reply of one line.
local ok, reply = pcall(run)
if ok then
  return reply
end
if type(reply) == 'table' and reply.err then
  return redis.error_reply(reply.err)
end
return redis.error_reply((string.gsub(tostring(reply), '[\r\n]+', ' ')))
