"""Processes of this host, told apart by pid and start time, so that a pid used again is not taken for the old one."""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")
_DEAD_STATES = frozenset("ZXx")
_POLL_S = 0.1
"""How often a kernel without pidfd is asked whether a process still lives."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for ever.

    Attributes:
        pid: Its number.
        start_time: When it started, in clock ticks since boot.
        boot_id: Which boot of this machine.
    """

    pid: int
    start_time: int
    boot_id: str


@cache
def boot_id() -> str:
    """Return this boot's identity, or an empty string where the kernel does not tell."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    """Return the fields of `/proc/PID/stat` from the third (state) on; the second may hold spaces and brackets."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a living process, or None when there is none (a zombie is dead)."""
    fields = _stat(pid)
    if fields is None or fields[0] in _DEAD_STATES:
        return None
    return ProcessIdentity(pid, int(fields[19]), boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Return whether this very process still lives."""
    return identity.boot_id == boot_id() and identify(identity.pid) == identity


def wait_for_exit(identity: ProcessIdentity, timeout_s: float | None) -> bool:
    """Wait until a process has ended.

    Args:
        identity: The process.
        timeout_s: For how many seconds at most; None for ever.

    Returns:
        Whether it has ended.
    """
    if not is_alive(identity):
        return True
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return True
    except (OSError, AttributeError):
        return _poll_for_exit(identity, timeout_s)
    try:
        if not is_alive(identity):
            return True
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1_000))
    finally:
        os.close(descriptor)


def _poll_for_exit(identity: ProcessIdentity, timeout_s: float | None) -> bool:
    import time

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while is_alive(identity):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def process_group_members(group: int) -> list[int]:
    """Return the living processes of a process group, zombies left out, in no order."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(PROC):  # noqa: PTH208  # names only, many times a second
            if name.isdigit():
                fields = _stat(int(name))
                if fields and int(fields[2]) == group and fields[0] not in _DEAD_STATES:
                    found.append(int(name))
    return found
