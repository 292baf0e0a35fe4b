-- The end of every script: runs `run` and turns what stopped it into an error reply of one line.
local ok, reply = pcall(run)
if ok then
  return reply
end
local text = tostring(type(reply) == 'table' and reply.err or reply)
if key_read and string.find(text, 'WRONGTYPE', 1, true) then
  text = sentence(key_read, 'holds a value of the wrong type')
end
return redis.error_reply((string.gsub(text, '[\r\n]+', ' ')))
