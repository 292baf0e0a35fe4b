"""The reply codes of the scripts, the same as in `lua/lib/replies.lua`."""

from __future__ import annotations

from enum import StrEnum

from allocator.model.values import Value


class Reply(StrEnum):
    """The reply code of a script."""

    GRANTED = "granted"
    SAME = "same"
    HELD = "held"
    TAKEN = "taken"
    EXHAUSTED = "exhausted"
    CORDONED = "cordoned"
    HOST_CONFLICT = "host_conflict"
    AGAIN = "again"
    NO_POOL = "no_pool"
    STALE_POOL = "stale_pool"
    RENEWED = "renewed"
    REASSERTED = "reasserted"
    LOST = "lost"
    RELEASED = "released"
    DECLINED = "declined"
    ALREADY = "already"
    NOT_YOURS = "not_yours"
    REAPED = "reaped"
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    SCOPE_FIXED = "scope_fixed"
    FORGOTTEN = "forgotten"
    BUSY = "busy"
    UNKNOWN = "unknown"
    FOUND = "found"
    NONE = "none"
    NO_TURN = "no_turn"
    DRAINING = "draining"
    LIVE = "live"
    EXPIRED = "expired"
    REPLACED = "replaced"
    RESTORED = "restored"
    QUEUED = "queued"
    LIMITED = "limited"
    LEFT = "left"
    RECOVERING = "recovering"
    FORCED = "forced"
    REMOVED = "removed"


CODES: dict[object, Reply] = {**{one.value: one for one in Reply}, **{one.value.encode(): one for one in Reply}}
"""The codes of replies, as they are read and as they are sent."""


class NoPool(Value):
    """The pool is not defined in this Redis: read its rules again, which defines it where it is known."""
