"""Ctrl-C where something must be undone first; everywhere else a command ends at once (`allocator.__main__`).

Where Ctrl-C is ignored, as in a shell's background command, it stays ignored.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt inside the block."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def ignore_interrupts() -> None:
    """From now on Ctrl-C comes too late: what was asked for is done and only has to be told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
