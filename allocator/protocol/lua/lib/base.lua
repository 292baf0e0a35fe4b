-- Checked reads and numbers. A read that meets a key of the wrong type (see run), or a field that is no number, stops
-- the script with one sentence that names the key (`ALLOC …`), before anything was written.
local FOREVER = 'inf'
local WRONG_WORDS = 'ALLOC a script was called with other words than portlease sends; nothing was changed'

local call, key_read = redis.call, nil

local function sentence(key, what)
  return 'ALLOC key ' .. key .. ' ' .. what .. '; another program wrote it: move or delete that key'
end

local function bad(key, what)
  error({ err = sentence(key, what) }, 0)
end

local function read(command, key, ...)
  key_read = key
  return call(command, key, ...)
end

local function number(text, key, field)
  return tonumber(text) or bad(key, 'has a garbled field ' .. field)
end

-- A number as text. Redis itself writes a whole number in full where it is an argument; a concatenation does not.
local format = string.format
local function whole(value)
  return format('%.0f', value)
end
