"""The limits: a round trip of PING, the bare pair, and the same scripts sent by `redis-benchmark`."""

from __future__ import annotations

import csv
import itertools
import shutil
import subprocess
from typing import Any

from allocator.protocol.wire import script
from benchmarks.leases import BARE_TAKE, SMALL, WIDE, Bench
from benchmarks.servers import server
from benchmarks.table import Row, plain
from benchmarks.timing import Spread, seconds_for, take_turns

CLIENTS = (1, 8, 64)
RANDOM = "__rand_int__"
"""What `redis-benchmark` puts twelve digits in the place of."""


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the times of one client of Python, and the rates of `redis-benchmark`."""
    rounds, count = (4, 50) if quick else (40, 100)
    with server(binary) as address:
        bench = Bench(address["unix"])
        bench.reset()
        times = take_turns(
            {
                "ping": lambda: seconds_for(lambda: [bench.redis.ping() for _ in range(count)]),
                "bare": lambda: seconds_for(lambda: bench.bare_pairs(count)),
                "scripts": lambda: seconds_for(lambda: bench.script_pairs(SMALL, count)),
            },
            rounds,
        )
        found: dict[str, Any] = {
            name: Spread.of([seconds / count * 1e6 for seconds in measured]) for name, measured in times.items()
        }
        found["tool"] = _tool_rates(bench, address["path"], quick=quick)
    return found


def _tool_rates(bench: Bench, path: str, *, quick: bool) -> dict[int, dict[str, Spread]] | str:
    """Return the calls a second of `redis-benchmark` by clients, or why there are none."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if tool is None:
        return "redis-benchmark is not installed"
    rounds, calls = (2, 1_000) if quick else (4, 6_000)
    numbers = itertools.count(1)
    take = bench.redis.script_load(BARE_TAKE)

    def bare() -> list[str]:
        return ["1", f"bare:{next(numbers)}:{RANDOM}", "token", "60000"]

    def claim() -> list[str]:
        token = f"{next(numbers):020}{RANDOM}"
        call = bench.claim_call(WIDE, f"org-{token}/crm#0", token).encode()
        return ["2", *call.keys, *map(str, call.args)]

    found: dict[int, dict[str, Spread]] = {}
    for clients in CLIENTS:
        rates: dict[str, list[float]] = {"bare": [], "claim": []}
        for _ in range(rounds):
            for name, sha1, arguments in (("bare", take, bare()), ("claim", script("claim").sha1, claim())):
                if name == "claim":
                    bench.reset()
                options = ["-s", path, "-c", str(clients), "-n", str(calls), "-r", "1000000000", "--csv"]
                done = subprocess.run(
                    [tool, *options, "EVALSHA", sha1, *arguments], capture_output=True, text=True, check=True
                )
                rates[name].append(float(list(csv.reader(done.stdout.splitlines()))[-1][1]))
        found[clients] = {name: Spread.of(values) for name, values in rates.items()}
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    table = [
        plain("PING, one round trip, Unix socket", found["ping"], " µs"),
        plain("bare pair (two scripts), Unix socket", found["bare"], " µs"),
        plain("claim and release (two scripts), Unix socket", found["scripts"], " µs"),
    ]
    if isinstance(found["tool"], str):
        return [*table, Row("`redis-benchmark` of the claim script", f"not measured: {found['tool']}", "")]
    for clients, rates in found["tool"].items():
        who = f"`redis-benchmark`, {clients} client{'s' if int(clients) > 1 else ''}"
        table += [
            plain(f"{who}: the bare script that takes", rates["bare"], " a second"),
            plain(f"{who}: the claim script, for workers that never claimed before", rates["claim"], " a second"),
        ]
    return table
