"""Durations as people write them (`500ms`, `30s`, `10m`, `1h`), as the milliseconds that the scripts use."""

from __future__ import annotations

import re
from typing import TypeAlias

from allocator.model.errors import InvalidInputError
from allocator.model.names import literal, shown

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,3}))?(ms|s|m|h|d)", re.ASCII)

MAX_DURATION_MS = 30 * 86_400_000

Duration: TypeAlias = float | str
"""A duration in the library: seconds, or text with a unit (`"30s"`)."""


def seconds_of(value: object, what: str) -> float:
    """Return a duration that a program gave, in seconds.

    Args:
        value: Seconds as a number from 0 on, or text such as `"30s"`.
        what: The name of the argument, as it appears in the error.

    Raises:
        InvalidInputError: When it is neither.
    """
    if isinstance(value, str):
        return parse_duration_ms(value, what=what) / 1_000
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise InvalidInputError(f"{what}={literal(value)} is not a duration; give seconds from 0 on, or text like '30s'")


def check_ttl(name: str, ttl: object) -> float:
    """Return a TTL in seconds.

    Raises:
        InvalidInputError: When it is not above 0, or longer than any pool allows.
    """
    seconds = seconds_of(ttl, name)
    if 0 < seconds <= MAX_DURATION_MS / 1_000:
        return seconds
    raise InvalidInputError(f"a TTL of {ttl} is not valid; give more than 0 seconds, and at most 30 days")


def ttl_in_ms(ttl: Duration) -> int:
    """Return a TTL as milliseconds.

    Raises:
        InvalidInputError: When it is not above 0, or longer than any pool allows.
    """
    return max(1, round(check_ttl("ttl", ttl) * 1_000))


def parse_duration_ms(text: str, *, what: str = "duration") -> int:
    """Return the milliseconds in `text`.

    Args:
        text: A number and a unit without a space between: `250ms`, `1.5s`, `30s`, `10m`, `1h`, `7d`.
        what: What the duration is for, as it appears in the error.

    Raises:
        InvalidInputError: When the text has another form.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise InvalidInputError(f"{shown(text)} is not a {what}; write it like 500ms, 30s, 10m or 1h")
    whole, fraction, unit = match.groups()
    unit_ms = _UNITS_MS[unit]
    return int(whole) * unit_ms + int((fraction or "0").ljust(3, "0")) * unit_ms // 1_000


def format_duration(ms: float) -> str:
    """Return `ms` milliseconds for people: `250 ms`, `11 s`, `3 min`, `2 h`."""
    if ms < 1_000:
        return f"{max(0, round(ms))} ms"
    seconds = ms / 1_000
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{round(seconds)} s"
    if seconds < 7_200:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3_600)} h"


def written_duration(ms: int) -> str:
    """Return `ms` in the form that `parse_duration_ms` reads, in the largest unit that holds it exactly."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _UNITS_MS[unit] == 0:
            return f"{ms // _UNITS_MS[unit]}{unit}"
    return f"{ms}ms"
