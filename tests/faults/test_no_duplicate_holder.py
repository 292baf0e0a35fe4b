"""The promise: never two holders of one port. Shown with real processes and really bound sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import client_of

from allocator.operations import listing

if TYPE_CHECKING:
    from allocator import PoolSpec, PortAllocator

CONTENDER = Path(__file__).parent / "contender.py"
PROCESSES = 64
TTL_S = 2.0


def contend(redis_url: str, pool: PoolSpec, directory: Path, mode: str, seconds: int) -> tuple[dict, list[dict]]:
    arguments = [redis_url, pool.name, str(PROCESSES), str(seconds), str(directory), mode]
    done = subprocess.run(
        [sys.executable, str(CONTENDER), *arguments], capture_output=True, text=True, timeout=seconds + 120, check=True
    )
    lines = [json.loads(line) for book in directory.glob("*.jsonl") for line in book.read_text().splitlines() if line]
    return json.loads(done.stdout), lines


def overlaps(lines: list[dict]) -> list[tuple[dict, dict]]:
    ended = {line["fence"]: line["ended"] for line in lines if "ended" in line}
    holdings: dict[int, list[tuple[float, float, int]]] = {}
    for line in lines:
        if "began" in line:
            # A killed holder's socket closed with it: only what it surely held is counted.
            end = ended.get(line["fence"], line["began"])
            holdings.setdefault(line["port"], []).append((line["began"], end, line["fence"]))
    found = []
    for of_port in holdings.values():
        of_port.sort()
        found += [(one, two) for one, two in pairwise(of_port) if two[0] < one[1]]
    return found


@pytest.mark.parametrize(("mode", "seconds"), [("calm", 30), ("kill", 30)])
def test_sixty_four_processes_never_share_a_port(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, tmp_path: Path, mode: str, seconds: int
) -> None:
    result, lines = contend(redis_url, pool, tmp_path, mode, seconds)
    held = [line for line in lines if "began" in line]
    assert result["failures"] == 0
    assert overlaps(lines) == []
    assert [line for line in lines if "bind_failed" in line] == []
    assert {line["port"] for line in held} == set(range(pool.first, pool.last + 1))
    assert len({line["fence"] for line in held}) == len(held)
    if mode == "kill":
        assert result["killed"] >= 20

    # Every port comes back within TTL + grace + 1 s of the last death, and nothing stays behind.
    deadline = result["last_death"] + TTL_S + pool.grace_ms / 1_000 + 1.0
    claimed = [
        ports.claim("email", org=f"last-{port}", port=port, wait=max(0.0, deadline - time.monotonic()))
        for port in range(pool.first, pool.last + 1)
    ]
    for lease in claimed:
        ports.release(lease)
    while ports.run(listing.reap(pool.name)).closed:
        pass
    assert ports.leases() == []
    left = {key.decode().rpartition("}")[2].split(":")[1:2][0] for key in keys_of(ports, pool) if b"}:" in key}
    # A turn that was told to a waiter who has gone on since lasts five seconds.
    assert left <= {"events", "history", "host", "hosts", "ports", "tokens", "turn", "worker"}
    client, base = client_of(ports.store), f"alloc:{{{pool.name}}}"
    assert client.zcard(f"{base}:ports:web-1") <= pool.size
    assert client.hlen(f"{base}:tokens:web-1") <= pool.size
    assert all(grant[:1] in b"-~!" for grant in client.hvals(f"{base}:tokens:web-1"))  # every grant has ended
    client.unlink(*keys_of(ports, pool))  # of thousands of workers: other tests look at all keys of this server


def keys_of(ports: PortAllocator, pool: PoolSpec) -> list[bytes]:
    client = client_of(ports.store)
    return list(client.scan_iter(match=f"alloc:{{{pool.name}}}*", count=10_000))
