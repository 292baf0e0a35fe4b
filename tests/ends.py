"""How a command that starts servers ends when it is told to: not without stopping them."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def handle_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process on the way of its context managers, without a traceback.

    Also where Ctrl-C was ignored, as it is for what a shell starts in its background. Forked processes end at once.
    """
    parent = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != parent:
            os._exit(128 + number)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
