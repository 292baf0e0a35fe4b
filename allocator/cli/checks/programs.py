"""Which programs of portlease run on this host, and since when: servers, agents, reconcilers, supervisors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.kernel.processes import all_pids, command_arguments
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_RUNNING = ("serve", "agent", "reconcile", "run")


class Program(Value):
    """A command that runs.

    Attributes:
        name: The command.
        pid: Its process.
        since_s: For how many seconds it has run.
    """

    name: str
    pid: int
    since_s: float


def running_programs() -> Iterator[Program]:
    """Yield the long-running commands of every user whose processes can be seen, by pid."""
    for pid in sorted(all_pids()):
        arguments = command_arguments(pid)
        name = _command(arguments)
        if name is None:
            continue
        try:
            began = Path(f"/proc/{pid}").stat().st_mtime
        except OSError:  # it has ended meanwhile, or there is no /proc
            continue
        yield Program(name, pid, max(0.0, time.time() - began))


def _command(arguments: list[str]) -> str | None:
    """Return which command a process runs: `allocator serve …`, `python -m allocator serve …`, or none of them."""
    for at, argument in enumerate(arguments[:4]):
        named = argument == "allocator" and (at == 0 or arguments[at - 1] == "-m")
        if (named or argument.endswith("/allocator")) and at + 1 < len(arguments) and arguments[at + 1] in LONG_RUNNING:
            return arguments[at + 1]
    return None
