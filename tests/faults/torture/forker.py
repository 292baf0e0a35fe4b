"""A process that has everything imported and forks actors: a killed one is replaced in milliseconds.

It reads one order a line from standard input and answers each with one line; it alone knows when its children died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).parents[2]
MUTATION = "TORTURE_MUTATION"


class Forker:
    """Starts and ends actors.

    Args:
        mutation: The bug that they load, or None.
    """

    def __init__(self, mutation: str | None = None) -> None:
        path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "faults")))
        environment = os.environ | {"PYTHONPATH": path} | ({MUTATION: mutation} if mutation else {})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.forker"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, part: Any) -> int:
        """Start an actor and return its pid."""
        return int(self._ask(start=asdict(part)))

    def kill(self, pid: int) -> tuple[float, float]:
        """Kill an actor; return the times before, and after it was surely dead."""
        before, after = self._ask(kill=pid)
        return before, after

    def ended(self) -> dict[int, int]:
        """Return the exit statuses of actors that ended since this was asked last, by pid."""
        return {int(pid): status for pid, status in self._ask(ended=True).items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _start(arguments: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 71
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(Path(arguments["directory"]) / f"log-{arguments['name']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        output = _full_pipe() if arguments["unread"] else log
        os.dup2(output, 1)
        os.dup2(output, 2)
        from torture.clients import ClientSpec, run_client

        status = run_client(ClientSpec(**arguments))
    finally:
        os._exit(status)


def _full_pipe() -> int:
    """Return the end for writing of a pipe without room; the other end stays open, and nobody reads it."""
    _, output = os.pipe()
    os.set_blocking(output, False)
    for size in (4_096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(output, b"." * size)
    os.set_blocking(output, True)
    return output


def _serve() -> None:
    import redis  # noqa: F401  # imported before the forks, not by each of them

    from allocator.agent import host  # noqa: F401  # as above
    from allocator.api import access, application, server  # noqa: F401  # as above
    from allocator.cli import agent, app, claim, reconcile, release, run  # noqa: F401  # as above
    from allocator.database import reconciler, recorder, watcher  # noqa: F401  # as above
    from allocator.operations import end, queue, renew  # noqa: F401  # as above
    from allocator.supervisor import run as _run  # noqa: F401  # as above
    from torture import clients, commands, mutations  # noqa: F401  # as above

    mutations.apply(os.environ.get(MUTATION))
    children: set[int] = set()
    statuses: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = None
        if "start" in order:
            answer = _start(order["start"])
            children.add(answer)
        elif "kill" in order:
            before = time.monotonic()
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(order["kill"], signal.SIGKILL)
                os.waitpid(order["kill"], 0)
            children.discard(order["kill"])
            answer = [before, time.monotonic()]
        else:
            for pid in list(children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    children.discard(pid)
                    statuses[pid] = os.waitstatus_to_exitcode(status)
            answer, statuses = statuses, {}
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _serve()
