"""Keeping a file current: that it ends when it is told to, whatever it does at that moment."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING
from unittest.mock import Mock

from allocator.discovery.exports import Exporter

if TYPE_CHECKING:
    from pathlib import Path


def test_a_signal_ends_it_at_whatever_moment_it_comes(tmp_path: Path) -> None:
    ended, calm = 0, Mock(wait_for_change=lambda _seen, _seconds: 0)
    current: Exporter | None = None

    def stop(*_: object) -> None:
        if current is not None:
            current.stop()

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.000_1, 0.000_1)
    try:
        for _ in range(300):
            current = Exporter(calm, lambda _known: "text", tmp_path / "file")
            current.run()
            ended += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended == 300
    assert (tmp_path / "file").read_text() == "text"
