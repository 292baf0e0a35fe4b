"""The processes of this host: the table of them, their ends, what they are called."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import NamedTuple

from allocator.kernel.identity import PROC, ProcessIdentity, ProcessRow, is_alive, proc_text, status_of

_POLL_S = 0.1
"""How often a kernel without pidfd is asked whether a process still lives."""

_LONGEST_POLL_MS = 2**31 - 1
"""The longest wait of poll(2): 24 days; a longer one ends early, which its result shows."""


def find_program(name: str, path: str | None = None) -> str | None:
    """Return the file that runs as a command, or None; `shutil.which` loads three compressors.

    Args:
        name: Its name, or its path.
        path: The `PATH` to search; None for that of this process.
    """
    folders = [""] if "/" in name else os.get_exec_path(None if path is None else {"PATH": path})
    files = (str(Path(folder, name)) for folder in folders)
    return next((file for file in files if os.access(file, os.X_OK) and Path(file).is_file()), None)


def wait_for_exit(identity: ProcessIdentity, timeout_s: float | None) -> bool:
    """Wait until a process has ended.

    Args:
        identity: The process.
        timeout_s: For how many seconds at most, 0 or less to look once; None for ever.

    Returns:
        Whether it has ended.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return True
    except (OSError, AttributeError):  # before Linux 5.3, filtered by a sandbox, or not Linux
        return _poll_for_exit(identity, timeout_s)
    try:
        # Asked after opening: from here on the descriptor is of the process that this answer is about.
        if not is_alive(identity):
            return True
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        timeout_ms = None if timeout_s is None else min(max(0.0, timeout_s * 1_000), _LONGEST_POLL_MS)
        return bool(poller.poll(timeout_ms))
    finally:
        os.close(descriptor)


def _poll_for_exit(identity: ProcessIdentity, timeout_s: float | None) -> bool:
    import time

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while is_alive(identity):
        left_s = _POLL_S if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(_POLL_S, left_s))
    return True


def process_table() -> dict[int, ProcessRow]:
    """Return the processes that this user may see, by pid; zombies are among them."""
    return {pid: row for pid in all_pids() if (row := status_of(pid)) is not None}


def with_descendants(*roots: int) -> list[int]:
    """Return processes and those below them that are alive."""
    table = process_table()
    found, grown = set(roots), True
    while grown:
        below = {pid for pid, row in table.items() if row.parent in found and pid not in found}
        found |= below
        grown = bool(below)
    return [pid for pid in found if pid in table and table[pid].alive]


def ancestors_of(pid: int) -> list[int]:
    """Return the processes that a process descends from, its parent first, as far as they may be seen."""
    found: list[int] = []
    while (row := status_of(pid)) is not None and row.parent > 0 and row.parent not in found:
        pid = row.parent
        found.append(pid)
    return found


def children_of(pid: int) -> list[int]:
    """Return the children that a process's main thread started or was given; none where the kernel does not tell.

    Who is given a child whose parent ended is its main thread. Source: Linux, `find_new_reaper` in kernel/exit.c.
    """
    try:
        return [int(number) for number in proc_text(pid, f"task/{pid}/children").split()]
    except OSError:
        return []


def descendants_of(*roots: int) -> set[int]:
    """Return what processes started, and what that started; costs what the tree costs, not what the host has.

    Unlike `children_of`, of all threads; what is started meanwhile may be missed. Source: proc_tid_children(5).
    """
    found: set[int] = set()
    left = list(roots)
    while left:
        pid = left.pop()
        for thread in _threads_of(pid):
            with contextlib.suppress(OSError):
                started = {int(number) for number in proc_text(pid, f"task/{thread}/children").split()}
                left += started - found
                found |= started
    return found


def _threads_of(pid: int) -> list[str]:
    try:
        return os.listdir(PROC / str(pid) / "task")  # noqa: PTH208  # many times a second
    except OSError:
        return []


def group_of(pid: int) -> int | None:
    """Return the process group of a process, or None when there is none."""
    row = status_of(pid)
    return row.group if row else None


def is_stopped(pid: int) -> bool:
    """Return whether a process stands still by a signal (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU)."""
    try:
        line = proc_text(pid, "stat")
    except OSError:
        return False
    return line[line.rindex(")") + 2] == "T"


def has_variable(pid: int, name: str, value: str) -> bool:
    """Return whether a process was started with this variable in its environment; False when it may not be seen."""
    try:
        return f"{name}={value}".encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def all_pids() -> list[int]:
    """Return the pids that this user may see."""
    try:
        return [int(name) for name in os.listdir(PROC) if name.isdigit()]  # noqa: PTH208  # many times a second
    except OSError:
        import psutil

        return psutil.pids()


def command_name(pid: int) -> str | None:
    """Return what a person calls the program of a process (`node`, `gunicorn`), or None when it may not be seen.

    Never its arguments, which may hold secrets; and printable whatever the process calls itself.
    """
    try:
        own = proc_text(pid, "comm")
    except OSError:
        return None
    try:
        arguments = proc_text(pid, "cmdline").split("\0")[:2]
        program = (PROC / str(pid) / "exe").readlink().name
    except OSError:
        return _printable(own)
    # A process may rename its main thread (newer versions of Node call it MainThread): such a name is nothing that was
    # started. Scripts have the name of their file, which is the second argument after the interpreter.
    if any(Path(argument).name.startswith(own) for argument in (program, *arguments)):
        return _printable(own)
    return _printable(program.removesuffix(" (deleted)"))


class ProcessFacts(NamedTuple):
    """What a person asks about a process.

    Attributes:
        command: What the program is called, without its arguments.
        started_at: When it started, in Unix seconds.
        resident_bytes: The memory that it has.
    """

    command: str
    started_at: float
    resident_bytes: int


def facts_of(identity: ProcessIdentity) -> ProcessFacts | None:
    """Return what a person asks about a process, or None when it has ended or may not be seen."""
    import psutil

    command = command_name(identity.pid)
    if command is None or not is_alive(identity):
        return None
    try:
        process = psutil.Process(identity.pid)
        return ProcessFacts(command, process.create_time(), process.memory_info().rss)
    except psutil.Error:
        return None


def command_arguments(pid: int) -> list[str]:
    """Return the arguments that a process was started with, none when they may not be seen.

    To be compared, never shown: they may hold secrets.
    """
    try:
        return proc_text(pid, "cmdline").split("\0")
    except OSError:
        return []


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
