-- Enough for an hour of a busy fleet; a reader that fell further behind compares everything anyway.
local EVENTS_KEPT = 10000
call('XTRIM', events_key, 'MAXLEN', '~', EVENTS_KEPT)
