-- The server's time: `now` in milliseconds, `now_us` in microseconds, `clock` in seconds and microseconds, as text.
local clock = read('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = (now_us - now_us % 1000) / 1000
