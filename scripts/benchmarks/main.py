"""The command: measures, and writes one table in Markdown, with the figures beside it as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hiredis
import redis

from benchmarks import api, commands, database, fleet, leases, supervisor
from benchmarks.servers import server
from benchmarks.table import Row, at_least, at_most, between, plain


def measure(binary: str | None, *, quick: bool) -> tuple[list[str], list[Row], dict[str, Any]]:
    """Return the facts about the machine, the rows, and all figures."""
    rounds, pairs = (8, 50) if quick else (60, 100)
    figures: dict[str, Any] = {}
    with server(binary) as place:
        info = redis.Redis.from_url(place["tcp"]).info()
        for transport in ("tcp", "unix"):
            figures[transport] = leases.pair_rates(leases.Bench(place[transport]), rounds, pairs)
        bench = leases.Bench(place["unix"])
        figures["server_us"] = leases.server_times(bench, rounds)
        figures["fill"] = leases.fill(bench, 5_000 if quick else 20_000)
        figures["full_pool"] = leases.full_pool(bench, rounds, pairs)
    figures["commands"] = commands.command_times(3 if quick else 15)
    figures["database"] = database.figures(binary, quick=quick)
    figures["api"] = api.figures(binary, quick=quick)
    figures["fleet"] = fleet.figures(binary, quick=quick)
    figures["supervisor"] = supervisor.figures(binary, quick=quick)
    table = [
        *rows(figures),
        *database.rows(figures["database"]),
        *api.rows(figures["api"]),
        *fleet.rows(figures["fleet"]),
        *supervisor.rows(figures["supervisor"]),
    ]
    return facts(info, place["pinned"], rounds, pairs), table, figures


def facts(info: dict[str, Any], pinned: str, rounds: int, pairs: int) -> list[str]:
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    apart = f"server and client on a CPU each: {pinned}; load at the end: {os.getloadavg()[0]:.1f}"
    return [
        f"server: {name}, {info['mem_allocator']}, no persistence",
        f"client: Python {platform.python_version()}, redis-py {redis.__version__}, hiredis {hiredis.__version__}",
        f"machine: {cpu_model()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}; {apart}",
        f"{rounds} rounds of {pairs} pairs, the cases taking turns",
    ]


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def rows(figures: dict[str, Any]) -> list[Row]:
    found: list[Row] = []
    for transport, word in (("tcp", "loopback TCP"), ("unix", "Unix socket")):
        rates = figures[transport]
        found += [
            plain(f"bare pair, {word}", rates["bare_us"], " µs"),
            at_least(f"claim + release, scripts, {word}: rate beside the bare pair", rates["scripts"], 0.80),
            Row(
                f"the same with encoding and decoding into `Lease`, {word}",
                f"{rates['operations'].median:.2f}",
                between(rates["operations"], 2),
            ),
        ]
    times = figures["server_us"]
    found += [
        at_least("60,000 ports 95 % full, rate beside 44 empty ports", figures["full_pool"]["ratio"], 0.85),
        plain("server time, a script of the bare pair", times["bare"], " µs", 1),
        at_most("server time, claim", times["claim"], 25, " µs"),
        at_most("server time, release", times["release"], 25, " µs"),
        at_most("server time, claim, pipelined", times["claim_pipelined"], 25, " µs"),
        at_most("server time, release, pipelined", times["release_pipelined"], 25, " µs"),
        at_most("server time, renewal of one lease in a batch of 44", times["renew"], 4, " µs"),
    ]
    fill = figures["fill"]
    found += [
        Row(
            f"memory for a lease, all keys ({fill.leases:,} leases)",
            f"{fill.bytes_per_lease:,.0f} bytes",
            "",
            "≤ 1,000 bytes",
            fill.bytes_per_lease <= 1_000,
        ),
        plain("pipelined claims", fill.claims_per_s, " a second"),
    ]
    whole = figures["commands"]
    if isinstance(whole, str):
        return [*found, Row("`allocator claim`, `allocator release`", f"not measured: {whole}", "")]
    return [
        *found,
        plain("`python -c 'import redis'`, whole process", whole["import_ms"], " ms"),
        at_most("`allocator claim`, whole process, beside that", whole["claim"], 2.0, digits=2),
        at_most("`allocator release`, whole process, beside that", whole["release"], 2.0, digits=2),
    ]


HEADINGS = ("| what | median | spread | target | met |", "|---|---|---|---|---|")
INTRODUCTION = """# Benchmarks

Written by `scripts/bench --out docs/benchmarks.md`; the figures are in `benchmarks.json` beside it.

A *bare pair* is the least that a lock on Redis costs: `SET NX PX` and compare-and-delete, each one `EVALSHA` by the
same client. Every rate is a ratio to it, taken in the same run with all cases taking turns, so that the machine's
speed and load drop out as far as they can. Medians, with the quartiles as the spread. Server times are the server's
own (`INFO commandstats`); those are absolute, so read them beside the bare script's.

A claim runs 12 to 16 commands in its script and a release 8, a bare pair three in two. What they buy is the port's
choice, the worker's uniqueness, the fence, the indexes, the event, and every check before the first write. So the
ratio says most about how dear a round trip is: the nearer the server and the faster the client, the lower it is.
"""


def page(machine: list[str], table: list[Row]) -> str:
    lines = [INTRODUCTION, *(f"- {fact}" for fact in machine), "", *HEADINGS]
    return "\n".join([*lines, *map(str, table)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path, help="write the table there, and the figures beside it as JSON")
    parser.add_argument("--server", help="the redis-server or valkey-server to measure")
    parser.add_argument("--fleet", action="store_true", help="only what a whole fleet takes, printed")
    parser.add_argument("--database", action="store_true", help="only what the reconciler takes, printed")
    parser.add_argument("--supervisor", action="store_true", help="only what looking after workers costs, printed")
    options = parser.parse_args()
    if options.supervisor:
        print(*HEADINGS, *supervisor.rows(supervisor.figures(options.server, quick=options.quick)), sep="\n")
        return
    if options.fleet:
        print(*HEADINGS, *fleet.rows(fleet.figures(options.server, quick=options.quick)), sep="\n")
        return
    if options.database:
        print(*HEADINGS, *database.rows(database.figures(options.server, quick=options.quick)), sep="\n")
        return
    machine, table, figures = measure(options.server, quick=options.quick)
    text = page(machine, table)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
        found = json.dumps({"machine": machine, "figures": figures}, default=asdict, indent=1)
        options.out.with_suffix(".json").write_text(found + "\n", encoding="utf-8")
