-- The reply codes; allocator/protocol/replies.py names the same ones, and a test holds them equal.
local GRANTED, SAME, HELD, TAKEN, EXHAUSTED = 'granted', 'same', 'held', 'taken', 'exhausted'
local CORDONED, HOST_CONFLICT, AGAIN = 'cordoned', 'host_conflict', 'again'
local NO_POOL, STALE_POOL = 'no_pool', 'stale_pool'
local RENEWED, REASSERTED, LOST = 'renewed', 'reasserted', 'lost'
local RELEASED, DECLINED, ALREADY, NOT_YOURS = 'released', 'declined', 'already', 'not_yours'
local REAPED = 'reaped'
local CREATED, CHANGED, UNCHANGED, SCOPE_FIXED = 'created', 'changed', 'unchanged', 'scope_fixed'
local FORGOTTEN, BUSY, UNKNOWN = 'forgotten', 'busy', 'unknown'
