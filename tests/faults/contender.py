"""Many processes that claim, really bind, hold and release ports; each writes down what it held and when.

Usage: contender.py URL POOL PROCESSES SECONDS DIRECTORY (kill|calm). Times are of the machine's one monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

from allocator import AllocatorError, PortAllocator
from allocator.store import blocking  # noqa: F401  # imported before the forks


def bind(port: int) -> list[socket.socket]:
    sockets = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        one = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        one.listen()
        sockets.append(one)
    return sockets


def contend(url: str, pool: str, number: int, until: float, directory: Path) -> None:
    import redis  # noqa: F401

    rng = random.Random(number * 1_000_003 + os.getpid())
    with (
        PortAllocator.from_url(url, pool=pool, host="web-1") as ports,
        (directory / f"{os.getpid()}.jsonl").open("w", buffering=1) as book,
    ):
        turn = 0
        while time.monotonic() < until:
            turn += 1
            try:
                lease = ports.claim("email", org=f"org-{os.getpid()}-{turn}", ttl=1.0, wait=2.0)
            except AllocatorError as error:
                book.write(json.dumps({"refused": type(error).__name__}) + "\n")
                continue
            try:
                sockets = bind(lease.port)
            except OSError as error:
                book.write(json.dumps({"bind_failed": str(error), "port": lease.port}) + "\n")
                ports.release(lease)
                continue
            began = time.monotonic()
            book.write(json.dumps({"port": lease.port, "fence": lease.fence, "began": began}) + "\n")
            time.sleep(rng.uniform(0.001, 0.020))
            ended = time.monotonic()
            for one in sockets:
                one.close()
            ports.release(lease)
            book.write(json.dumps({"fence": lease.fence, "ended": ended}) + "\n")


def main() -> None:
    url, pool, processes, seconds, directory, mode = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    rng = random.Random(7)
    children: set[int] = set()
    killed = 0

    def start(number: int) -> None:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(KeyboardInterrupt):
                contend(url, pool, number, until, Path(directory))
            os._exit(0)
        children.add(pid)

    for number in range(int(processes)):
        start(number)
    while mode == "kill" and time.monotonic() < until - 1.0:
        time.sleep(0.1)
        victim = rng.choice(sorted(children))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        children.discard(victim)
        killed += 1
        start(1_000 + killed)
    failures = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    print(json.dumps({"killed": killed, "failures": failures}))


if __name__ == "__main__":
    main()
