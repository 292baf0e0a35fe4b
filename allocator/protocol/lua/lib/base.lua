-- Keys, checked reads and the clock. A read that meets a key of the wrong type, or a field that is no number,
-- stops the script with one sentence that names the key (`ALLOC …`), before anything was written.
local base = KEYS[1]
local FOREVER = 'inf'

local function bad(key, what)
  error({ err = 'ALLOC key ' .. key .. ' ' .. what .. '; another program wrote it: move or delete that key' }, 0)
end

local function read(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    local what = tostring(reply.err)
    if string.find(what, 'WRONGTYPE', 1, true) then
      bad(key, 'holds a value of the wrong type')
    end
    error({ err = what }, 0)
  end
  return reply
end

local function number(text, key, field)
  local value = tonumber(text)
  if not value then
    bad(key, 'has a garbled field ' .. field)
  end
  return value
end

local function whole(value)
  return string.format('%.0f', value)
end

local function server_time()
  local now = redis.call('TIME')
  local us = tonumber(now[1]) * 1000000 + tonumber(now[2])
  return math.floor(us / 1000), us
end

local function guarded(run)
  local ok, reply = pcall(run)
  if ok then
    return reply
  end
  if type(reply) == 'table' and reply.err then
    return redis.error_reply(reply.err)
  end
  return redis.error_reply((string.gsub(tostring(reply), '[\r\n]+', ' ')))
end
