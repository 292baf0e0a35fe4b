-- The server's time: `now` in milliseconds, `now_us` in microseconds.
local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)
