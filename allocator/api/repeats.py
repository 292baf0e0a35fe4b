"""One log line a minute for what repeats: a flood of the same trouble must not fill a disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERY_S = 60.0
MOST_KINDS = 1_000
LOGGERS = ("allocator.api", "uvicorn.error", "asyncio")
"""Whose warnings a stranger can cause."""


class RepeatFilter(logging.Filter):
    """Lets one warning or error of each kind through in a minute, and counts the others.

    A kind is a logger's sentence before its values are put in, together with the class of the error that it is about.

    Args:
        clock: The time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is written; the first one after suppressed ones has their number."""
        if record.levelno < logging.WARNING:
            return True
        error = getattr(record, "error", None) or (record.exc_info[1] if record.exc_info else None)
        if isinstance(error, asyncio.CancelledError):
            return False  # a request that the end of the server cut short, which uvicorn logs as an error of its route
        kind = (record.name, record.levelno, str(record.msg)[:200], type(error))
        now = self._clock()
        written_at, unwritten = self._kinds.get(kind, (-EVERY_S, 0))
        if now - written_at < EVERY_S:
            self._kinds[kind] = written_at, unwritten + 1
            return False
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        if unwritten:
            record.msg = f"{record.getMessage()} ({unwritten} more like it since the line before)"
            record.args = None
        return True


@contextlib.contextmanager
def repeats_counted() -> Iterator[None]:
    """Write each repeated warning of the server once a minute while the block lasts."""
    one = RepeatFilter()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(one)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(one)
