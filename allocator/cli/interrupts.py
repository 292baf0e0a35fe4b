"""Ctrl-C where something must be undone first; everywhere else a command ends at once (`allocator.__main__`).

Where Ctrl-C is ignored, as in a shell's background command, it stays ignored.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def interrupts_raised() -> Iterator[list[int]]:
    """Make Ctrl-C raise KeyboardInterrupt inside the block.

    Gives the list of those that came: one that falls into a destructor is printed by Python and goes no further, so
    that a block that would go on for ever has to look.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield came
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def ignore_interrupts() -> None:
    """From now on Ctrl-C comes too late: what was asked for is done and only has to be printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
