-- Checked reads and the clock. A read that meets a key of the wrong type, or a field that is no number, stops the
-- script with one sentence that names the key (`ALLOC …`), before anything was written.
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
  return tonumber(text) or bad(key, 'has a garbled field ' .. field)
end

-- A number as text. Redis itself writes a whole number in full where it is an argument; a concatenation does not.
local function whole(value)
  return string.format('%.0f', value)
end
