"""Real reconciler processes that are killed or stopped before a given SQL statement, started in milliseconds.

A process of its own imports everything once and forks for each pass (a test process has threads, and must not). Run as
a program, this module is that process: it reads one order a line from standard input and answers with one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).parent


class Reconcilers:
    """Forks passes of one pool over one database.

    Args:
        redis_url: Where the leases are.
        database_url: Where the rows are.
        pool: The pool.
    """

    def __init__(self, redis_url: str, database_url: str, pool: str) -> None:
        arguments = [sys.executable, __file__, redis_url, database_url, pool]
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, *, statement: int, with_signal: int) -> dict[str, Any]:
        """Make a pass that gets a signal before its statement of that number; return its pid and what became of it.

        `end` is `exited` (with `status`), `killed` or `stopped`.
        """
        return self._ask(statement=statement, signal=with_signal)

    def go_on(self, pid: int) -> dict[str, Any]:
        """Let a stopped pass go on to its end."""
        return self._ask(pid=pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _pass(redis_url: str, database_url: str, pool: str, statement: int, with_signal: int) -> int:
    from sqlalchemy import event

    from allocator import AllocatorError, PortAllocator
    from allocator.database.connection import Database
    from allocator.database.fenced import DeposedError
    from allocator.database.leader import Leader
    from allocator.database.reconciler import Reconciler, Report
    from allocator.database.upgrade import open_layout
    from allocator.model.tables import TableNames

    database = Database.open(database_url)
    layout = open_layout(database, TableNames())
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        if seen == statement:
            os.kill(os.getpid(), with_signal)
        seen += 1

    event.listen(database.engine, "before_cursor_execute", count)
    event.listen(database.engine, "commit", count)
    with PortAllocator.from_url(redis_url, pool=pool, host="web-1") as ports:
        leader = Leader(ports)
        if leader.take().fence is None:
            return 73
        try:
            Reconciler(ports, database, layout, leader=leader).run(Report())
        except DeposedError:
            return 74
        except AllocatorError as error:
            return error.exit_code
        leader.give_up()
    return 0


def _wait(pid: int) -> dict[str, Any]:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"pid": pid, "end": "stopped"}
    if os.WIFSIGNALED(status):
        return {"pid": pid, "end": "killed"}
    return {"pid": pid, "end": "exited", "status": os.WEXITSTATUS(status)}


def _serve(redis_url: str, database_url: str, pool: str) -> None:
    from allocator.database import connection

    connection.LOCK_TIMEOUT_S = connection.IDLE_TRANSACTION_S = 0.5 if database_url.startswith("postgres") else 0.3
    stopped: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            os.kill(order["pid"], signal.SIGCONT)
            stopped.discard(order["pid"])
            answer = _wait(order["pid"])
        else:
            pid = os.fork()
            if pid == 0:
                status = 70
                try:
                    status = _pass(redis_url, database_url, pool, order["statement"], order["signal"])
                finally:
                    os._exit(status)
            answer = _wait(pid)
        if answer["end"] == "stopped":
            stopped.add(answer["pid"])
        print(json.dumps(answer), flush=True)
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
