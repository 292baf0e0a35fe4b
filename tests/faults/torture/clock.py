"""A wall clock for a server that can be set: libfaketime, which reads from a file how far it is ahead."""

from __future__ import annotations

from pathlib import Path

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
)


def library() -> Path | None:
    """Return where libfaketime is installed (package `faketime`), or None."""
    return next((Path(path) for path in LIBRARIES if Path(path).exists()), None)


class Clock:
    """How far a server's wall clock is ahead of this machine's; its monotonic clock is left alone.

    Attributes:
        ahead_s: Seconds.
    """

    def __init__(self, file: Path, preloaded: Path) -> None:
        self._file = file
        self._preloaded = preloaded
        self.ahead_s = 0.0
        self.jump(0.0)

    def jump(self, seconds: float) -> None:
        """Set it ahead by so many seconds, or back."""
        self.ahead_s += seconds
        replacement = self._file.with_suffix(".new")
        replacement.write_text(f"{self.ahead_s:+.3f}s\n")
        replacement.replace(self._file)

    def environment(self) -> dict[str, str]:
        """Return the variables that a server needs to have this clock."""
        return {
            "LD_PRELOAD": str(self._preloaded),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
