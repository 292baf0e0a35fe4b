"""The page: the figures of a whole run as Markdown, a section for each part."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
import redis

from benchmarks import (
    api,
    commands,
    database,
    direct,
    failover,
    fleet,
    growth,
    layers,
    limits,
    pairs,
    rows,
    soak,
    status_page,
    supervisor,
)
from benchmarks.peers import measure
from benchmarks.peers import tables as peer_tables
from benchmarks.servers import server

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.table import Row

HEADINGS = ("| what | median | spread | target | met |", "|---|---|---|---|---|")


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: What it is called on the command line and in the JSON.
        title: The heading of its section.
        text: What stands under the heading.
        figures: Measures.
        rows: The figures as lines of a table of targets; none for some parts.
        more: The figures as further Markdown.
    """

    name: str
    title: str
    text: str
    figures: Callable[..., Any]
    rows: Callable[[Any], list[Row]] = lambda _: []
    more: Callable[[Any], list[str]] = lambda _: []


PARTS = (
    Part(
        "limits",
        "Against the limits",
        """\
What asks a server twice takes two round trips at least, and from Python no less than the driver's. One client over a
Unix socket; `redis-benchmark` sends the same scripts without any Python.""",
        limits.figures,
        limits.rows,
    ),
    Part(
        "direct",
        "The way to the server",
        """\
The same pair of bare scripts over each way to one server, blocking and with asyncio; beside them the allocators.""",
        direct.figures,
        direct.rows,
    ),
    Part(
        "pairs",
        "Beside a bare pair",
        """\
A *bare pair* is the least that a lock on Redis costs: `SET NX PX` and compare-and-delete, each one `EVALSHA` by the
same client. Server times are the server's own (`INFO commandstats`); those are absolute, so read them beside the bare
script's. A claim runs 12 to 16 commands in its script and a release 8, a bare pair three in two. What they buy is the
port's choice, the worker's uniqueness, the fence, the indexes, the event, and every check before the first write. So
the ratio says most about how dear a round trip is: nearer servers and faster clients make it lower.""",
        pairs.figures,
        pairs.rows,
    ),
    Part(
        "peers",
        "Beside what people use instead",
        """\
All on one server and over the same Unix socket, with redis-py and hiredis, in processes that are ready before the
clock starts; the peers take turns. A pool is filled first, then ports are claimed and given back on it; where it is
full, the figure is the rate of refusals. Server and clients have a CPU each, so that with 8 and 64 clients it is the
clients' Python that is busy. *Its scripts* are our two scripts as a program would send them by hand; *`PortAllocator`*
is the library as it ships, which also asks the kernel who listens, proves the port by a bind, and returns a `Lease`;
*for another host* there is no kernel to ask, which is what the peers leave out too. A lock is tried at a random port
and then at the next ones; a peer that answers less than twice a second is measured once, by the part of the ports that
it had tried after a few seconds, and not with more clients. Where there are more clients than free ports, ours and
redis-allocator refuse at once, which the table tells, and the client asks again 10 ms later; a loop goes on trying.

An empty pool is where a lock for each port is at its best: the first port that it tries is free, and all that is to be
done is a `SET`. It is ahead of a claim there, for it does less: it knows neither the worker nor whether it has a port
already, grows no fence, tells nobody, and asks no kernel. `malloc_key` without `gc` is one script as ours is, and with
one client as fast or faster, because it does not hand out again what has expired; with its collection, which is what
`malloc` does, it is not.

![Rates by how full the pool is](images/peers.svg)""",
        measure.figures,
        peer_tables.rows,
        peer_tables.tables,
    ),
    Part(
        "growth",
        "Growth",
        """\
One client, for workers that never claimed before; all points of a curve in one server, taking turns. Where workers
wait, the claim is that of the first in the queue after the release that woke it, and what it costs more is the waking.

![Cost by size](images/growth.svg)""",
        growth.figures,
        growth.rows,
        growth.curves,
    ),
    Part(
        "layers",
        "Where the time of a claim goes",
        """\
One client over a Unix socket, 44 ports, medians; a clock around each layer, the script's time by the server.""",
        layers.figures,
        more=layers.table,
    ),
    Part(
        "failover",
        "After a failover",
        """\
One primary, one replica and three Sentinels (down after 500 ms); the worst of three rounds. A supervisor restarts no
worker whose lease is confirmed, so that a lease that is neither lost nor moved is a worker that goes on. No client
finds the new primary before a Sentinel names it, about a second after the promotion.""",
        failover.figures,
        failover.rows,
    ),
    Part("fleet", "A whole fleet", "Heartbeats, claims beside them, and half of the hosts gone at once.",
         fleet.figures, fleet.rows),
    Part("database", "The reconciler", "On PostgreSQL.", database.figures, database.rows),
    Part(
        "rows",
        "An application's table",
        """\
Rows that were written by hand: uuid keys, foreign keys, mixed case, a fifth of them live. Each
command as a whole process.""",
        rows.figures,
        rows.rows,
    ),
    Part("api", "The HTTP API", "A process of its own; listeners and claims share another.", api.figures, api.rows),
    Part("page", "The status page",
         "Hosts full of leases, 100 events a second; pages that read as ours does, and ours in Chromium.",
         status_page.figures, status_page.rows),
    Part("supervisor", "Looking after workers", "`run` and `agent` as the commands that they are.",
         supervisor.figures, supervisor.rows),
    Part("commands", "Whole commands", "From exec to exit, with the embedded server.", commands.figures, commands.rows),
)  # fmt: skip

SOAK = Part("soak", "Nothing grows",
            "Every program that stays, while a fleet works at a hundred times its pace: when warm, and in the end.",
            soak.figures, soak.rows)  # fmt: skip
"""An hour by itself, and so no part of a whole run."""

TITLE = """# Benchmarks

> **For** whoever wants to know what portlease costs. **At the end** you have its figures, how they were measured, and
> which targets it misses.
"""

INTRODUCTION = """\
Written by `scripts/bench --out docs/benchmarks.md`; the figures are in `benchmarks.json` beside it.

What is compared runs alternately, so that the machine's speed and load affect both sides alike. Figures are medians,
with the quartiles as the spread.
"""


def facts(binary: str | None) -> list[str]:
    """Return what the figures depend on: server, client, machine."""
    with server(binary) as address:
        info = redis.Redis.from_url(address["tcp"]).info()
        pinned = address["pinned"]
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    return [
        f"server: {name}, {info['mem_allocator']}, no persistence",
        f"client: Python {platform.python_version()}, redis-py {redis.__version__}, hiredis {hiredis.__version__}",
        f"machine: {_cpu_model()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        f"server and clients on a CPU each: {pinned}; load at the end: {os.getloadavg()[0]:.1f}",
    ]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def section(part: Part, found: Any) -> list[str]:
    """Return a part's section."""
    table = part.rows(found)
    lines = ["", f"## {part.title}", "", part.text]
    if table:
        lines += ["", *HEADINGS, *map(str, table)]
    more = part.more(found)
    return [*lines, *([] if not more or not more[0] else [""]), *more]


TEN = (
    ("claim and release (two scripts), Unix socket", "a claim and its release, one client"),
    ("server time, claim", "of that, in the server: the claim"),
    (
        "60,000 ports 95 % full, rate beside 44 empty ports",
        "the same in a pool of 60,000 ports that is 95 % full: rate beside 44 empty ports",
    ),
    (
        "`redis-benchmark`, 64 clients: the claim script, for workers that never claimed before",
        "claims a second of one server, at most",
    ),
    (
        "10,000 hosts with 44 leases each, heartbeats at TTL 30 s: one server",
        "heartbeats of 10,000 hosts with 440,000 leases, TTL 30 s",
    ),
    (
        "10,000 hosts with 44 leases each, heartbeats at TTL 30 s: claims beside them, 99th percentile",
        "a claim beside those heartbeats, 99 %",
    ),
    ("10,000 hosts with 44 leases each, heartbeats at TTL 30 s: memory for a lease", "memory for a lease"),
    (
        "from a claim's reply to its committed row, PostgreSQL, 100 claims a second (3,000 claims): median",
        "from a claim to its row in PostgreSQL",
    ),
    ("`agent`: from a process's end to the release", "from the end of a worker's process to the release of its port"),
    ("`run`: resident memory, one worker", "memory of a supervisor"),
)
"""The ten figures that a reader wants first, by their lines below, as text that need no other line."""


def ten(rows: list[Row]) -> list[str]:
    """Return the ten figures that stand at the top; one that a short run lacks is left out."""
    values = {row.what: row.value for row in rows}
    lines = [f"| {shown} | {values[what]} |" for what, shown in TEN if what in values]
    return ["| the ten figures | |", "|---|---|", *lines, ""]


def page(machine: list[str], figures: dict[str, Any]) -> str:
    """Return the whole page."""
    every = [row for part in PARTS for row in part.rows(figures[part.name])]
    with_target = [row for row in every if row.met is not None]
    missed = [row for row in with_target if not row.met]
    lines = [TITLE, *ten(every), INTRODUCTION, *(f"- {fact}" for fact in machine), "", "## Targets", ""]
    lines.append(f"{len(with_target) - len(missed)} of {len(with_target)} targets are met.")
    if missed:
        lines += ["These are not:", "", *HEADINGS, *map(str, missed)]
    for part in PARTS:
        lines += section(part, figures[part.name])
    return "\n".join(lines) + "\n"
