"""`top`: the pool in a terminal, live, from 80x24 up; `--once` prints it and ends.

It draws with nothing but the terminal's own sequences, so that it works over any ssh; what does not fit is counted, not
cut silently. May not live here: anything that changes a lease.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.interrupts import interrupts_raised
from allocator.cli.options import ConfigOption, Desk, PoolOption, RedisOption, desk, seconds
from allocator.model.durations import format_duration
from allocator.model.errors import AllocatorError, InvalidInputError, printable
from allocator.model.states import LeaseState
from allocator.protocol.wire import event_time, events_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.model.leases import Lease
    from allocator.operations.listing import HostView, PortView

SIGNS = {"starting": "s", "ready": "R", "degraded": "D", "draining": "d", "cooling": "c", "free": "."}
COLOURS = {"starting": "34", "ready": "32", "degraded": "33", "draining": "35", "cooling": "2", "free": "2"}
LEGEND = "R ready  s starting  D degraded  d draining  c cooling or quarantined  . free"
LEAST_COLUMNS, LEAST_ROWS = 80, 24
EVENTS = 5
BUSIEST_HOSTS = 6


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(top)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    every: Annotated[str, typer.Option("--every", help="How long between two pictures, at most.")] = "2s",
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Watch the pool in a terminal: hosts, ports, leases, what happens. q or Ctrl-C ends it.

    Example: allocator top --once
    """
    interval_s = seconds(every, "interval") or 0.0
    if interval_s < 0.1:
        raise InvalidInputError("an interval below 100ms only burdens Redis; give for example --every 2s")
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidInputError("this is no terminal; print one picture with --once")
    with desk(pool, None, redis_url, config, reads_only=True) as at:
        if once:
            columns, rows = terminal_size()
            print("\n".join(picture(at, columns, rows if sys.stdout.isatty() else 10_000, coloured=False)))
            return
        with interrupts_raised() as interrupts, _full_screen():
            _watch(at, interval_s, interrupts)


def terminal_size() -> tuple[int, int]:
    """Return columns and rows, at least 80x24."""
    with contextlib.suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stdout.fileno())
        return max(LEAST_COLUMNS, size.columns), max(LEAST_ROWS, size.lines)
    given = os.environ.get("COLUMNS", "")
    return max(LEAST_COLUMNS, int(given)) if given.isdecimal() and len(given) < 5 else LEAST_COLUMNS, LEAST_ROWS


@contextlib.contextmanager
def _full_screen() -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _watch(at: Desk, interval_s: float, interrupts: list[int]) -> None:
    while not interrupts:
        began = time.monotonic()
        columns, rows = terminal_size()
        try:
            lines = picture(at, columns, rows, coloured=True)
        except AllocatorError as error:
            lines = [f"Redis is away, trying again: {error}"[:columns]]
        sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines[: rows - 1]) + "\x1b[J")
        sys.stdout.flush()
        left = max(0.0, interval_s - (time.monotonic() - began))
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in {"q", "Q", "\x1b", ""}:
            return
    raise KeyboardInterrupt


def picture(at: Desk, columns: int, rows: int, *, coloured: bool) -> list[str]:
    """Return the lines of one picture, none longer than `columns` and at most `rows - 1` of them."""
    from allocator.operations import listing

    rules = at.allocator.pool()
    hosts = at.allocator.hosts()
    now = at.allocator.store.server_time()
    views = {
        host.name: at.allocator.run(listing.ports(at.pool, rules.space_of(host.name)))
        for host in sorted(hosts, key=lambda one: -one.leases)[:BUSIEST_HOSTS]
    }
    leases = sorted(at.allocator.leases(), key=lambda lease: (lease.state is LeaseState.READY, lease.host, lease.port))
    leased, size = len(leases), rules.size * (len(hosts) if rules.scope == "host" else 1)
    percent = round(100 * leased / size) if size else 0
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    lines = [
        f"portlease {at.pool}  {leased} of {size} ports leased ({percent} %) on {len(hosts)} hosts  {clock}"[:columns],
        LEGEND[:columns],
        "",
    ]
    for host in sorted(hosts, key=lambda one: one.name):
        if host.name in views:
            lines += _host_lines(host, views[host.name], (rules.first, rules.last), columns, coloured=coloured)
    if len(hosts) > BUSIEST_HOSTS:
        lines.append(f"and {len(hosts) - BUSIEST_HOSTS} hosts with fewer leases: see 'allocator host ls'")
    events = _event_lines(at, columns)
    room = rows - 1 - len(lines) - len(events) - 2
    return [*lines, "", *_lease_lines(leases, now, max(2, room - 1), columns), "", *events][: rows - 1]


def _host_lines(
    host: HostView, views: list[PortView], ends: tuple[int, int], columns: int, *, coloured: bool
) -> list[str]:
    word = " draining" if host.draining else " cordoned" if host.cordoned else ""
    known = {view.port: view for view in views}
    title = f"{host.name}{word}: {host.leases} leased"
    width = columns - 8
    if ends[1] - ends[0] >= 8 * width:
        return [f"{title}, {len(views) - host.leases} cooling of {ends[1] - ends[0] + 1} ports"[:columns]]
    lines = [title[:columns]]
    for start in range(ends[0], ends[1] + 1, width):
        signs = []
        for port in range(start, min(start + width, ends[1] + 1)):
            view = known.get(port)
            state = str(view.lease.state) if view and view.lease else "cooling" if view else "free"
            sign = SIGNS.get(state, "?")
            signs.append(f"\x1b[{COLOURS.get(state, '0')}m{sign}\x1b[0m" if coloured else sign)
        lines.append(f"  {start:5} " + "".join(signs))
    return lines


def _lease_lines(leases: list[Lease], now: float, room: int, columns: int) -> list[str]:
    rows = [("HOST", "PORT", "WORKER", "STATE", "PID", "RST", "ENDS IN", "LAST ERROR")]
    for lease in leases[: room - 1]:
        left = format_duration((lease.expires_at - now) * 1_000)
        pid = "-" if lease.pid is None else str(lease.pid)
        rows.append(
            (
                lease.host,
                str(lease.port),
                str(lease.worker),
                str(lease.state),
                pid,
                str(lease.restarts),
                left,
                lease.last_error or "",
            )
        )
    limits = (18, 5, max(20, columns - 74), 8, 8, 4, 8, 40)
    widths = [min(limit, max(len(row[at]) for row in rows)) for at, limit in enumerate(limits)]
    lines = [
        "  ".join(_fit(cell, width) for cell, width in zip(row, widths, strict=True))[:columns].rstrip() for row in rows
    ]
    if len(leases) > room - 1:
        lines[-1] = f"and {len(leases) - len(rows) + 2} more leases: see 'allocator ls'"
    return lines


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _event_lines(at: Desk, columns: int) -> list[str]:
    lines = []
    for identifier, fields in at.allocator.store.newest_events(events_key(at.pool), EVENTS)[::-1]:
        clock = time.strftime("%H:%M:%S", time.localtime(event_time(identifier)))
        what = f"{fields.get('type', '?')} {fields.get('state', '')}".strip()
        place = f"{fields.get('host')}:{fields.get('port')}"
        lines.append(printable(f"{clock}  {what.ljust(16)}  {place}  {fields.get('worker')}")[:columns])
    return lines
