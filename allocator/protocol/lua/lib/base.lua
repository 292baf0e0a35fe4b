-- base: how a script reads the time, stops before it has written anything, and answers what stopped it.

local FOREVER = 'inf'
-- A number as text. Redis itself writes a whole number in full where it is an argument; a concatenation does not.
local WHOLE = '%.0f'
local WRONG_TYPE = 'holds a value of the wrong type'
local NOT_OURS = '; another program wrote it: move or delete that key'
local WRONG_ARGUMENTS = 'ALLOC a script was called with arguments that portlease does not send; nothing was changed'

-- Stops the script with one sentence that names the key.
local function bad(key, what)
  error({ err = 'ALLOC key ' .. key .. ' ' .. what .. NOT_OURS }, 0)
end

-- Stops the script with the error that a write was answered with.
local function refuse(answer, key)
  local wrong_type = string.find(tostring(answer.err), 'WRONGTYPE', 1, true)
  error({ err = wrong_type and 'ALLOC key ' .. key .. ' ' .. WRONG_TYPE .. NOT_OURS or answer.err }, 0)
end

-- The server's time in milliseconds and in microseconds; then its seconds and its microseconds, as text.
local function server_time(read)
  local clock = read('TIME')
  local now_us = clock[1] * 1000000 + clock[2]
  return (now_us - now_us % 1000) / 1000, now_us, clock[1], clock[2]
end

-- One number of a pool's rules; `name` with a blank before it and `=` behind it. In two steps: a pattern that has to look
-- for where it fits costs many times as much.
local function rule_of(rules, name, base)
  local _, before = string.find(rules, name, 1, true)
  return before and tonumber(string.match(rules, '^(%d+) ', before + 1)) or bad(base, 'has a garbled field rules')
end

-- Runs `run` with its three ways to Redis (`read` and `call` stop the script where a command fails, `try` answers with
-- the error) and turns what stopped it into an error reply of one line. What Lua itself reports (for
-- example an argument that is not a number) is shown with the last key that was read, without line numbers.
local function guarded(run)
  local ok, reply = pcall(run, redis.call, redis.call, redis.pcall)
  if ok then
    return reply
  end
  local text = tostring(type(reply) == 'table' and reply.err or reply)
  -- Redis 7.0 states of an ACL rule that it forbids a "command" or its "arguments": that is not a wrong argument of
  -- ours.
  local forbidden = string.find(text, 'The user executing the script', 1, true)
  local from_lua = type(reply) == 'string' and string.match(reply, '^[^@ ]+:%d+: (.*)')
  local wrong_type = string.find(text, 'WRONGTYPE', 1, true)
  local odd = not forbidden and (from_lua or string.find(text, '^ERR .* is not ') or string.find(text, '^ERR .* arg'))
  if wrong_type or odd then
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
    text = wrong_type and 'ALLOC key ' .. key .. ' ' .. WRONG_TYPE .. NOT_OURS
      or 'ALLOC a script stopped before it wrote anything (' .. (from_lua or text) .. '): its arguments are '
      .. 'not those that portlease sends, or ' .. key .. ' holds what portlease did not write'
  end
  return redis.error_reply((string.gsub(text, '[\r\n]+', ' ')))
end
