"""What `top` shows, as lines of text: the order and the terms of the status page. Draws nothing itself, reads nothing.

A row is text with a colour and what `enter` opens; whoever draws it cuts it to the width and paints it.
"""

from __future__ import annotations

import time
import unicodedata
from typing import TYPE_CHECKING

from allocator.model.durations import format_duration
from allocator.model.errors import printable
from allocator.model.problems import command
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from allocator.api.cells import Cell, HostEntry
    from allocator.api.index import FleetIndex
    from allocator.cli.watched import Past
    from allocator.model.problems import Problem

SIGNS = {
    "free": ("·", ".", "free", "2"),
    "starting": ("◔", "s", "starting", "34"),
    "ready": ("●", "r", "ready", "32"),
    "degraded": ("▲", "d", "degraded", "33"),
    "draining": ("◐", "n", "draining", "35"),
    "cooling": ("…", "c", "cooling down", "2"),
    "quarantined": ("✕", "q", "quarantined", "31"),
    "stranger": ("!", "x", "stranger", "31"),
}
"""Sign, sign of a terminal without Unicode, name, and colour of each status."""
SEVERITIES = {
    3: ("✕", "X", "critical", "31"),
    2: ("!", "!", "warning", "33"),
    1: ("·", ".", "notice", "0"),
    0: (" ", " ", "", "0"),
}
GAP = "   "
"""What stands between two counters."""
BADNESS = ("degraded", "starting", "stranger", "quarantined", "draining", "ready", "cooling")
HEALTH = {
    "starting": "has not answered yet",
    "ready": "passes",
    "degraded": "fails",
    "draining": "is sent no new requests",
}
MOST_FOUND = 200


class Row(Value):
    """A line that can be chosen.

    Attributes:
        parts: The same with colours, as pairs of text and colour; they make up `text`.
        host: What `enter` opens, or None.
        port: The port of the host, or None for the host itself.
        hint: What stands in the last line while it is chosen: what to do.
    """

    parts: tuple[tuple[str, str], ...]
    host: str | None = None
    port: int | None = None
    hint: str = ""

    @property
    def text(self) -> str:
        """What it shows, without colours."""
        return "".join(text for text, _ in self.parts)


def row(text: str, colour: str = "0", **more: str | int | None) -> Row:
    """Return a row of one colour."""
    return Row(((printable(text), colour),), **more)  # type: ignore[arg-type]  # by the callers' names


class Look(Value):
    """How a terminal wants it.

    Attributes:
        columns: How wide it is.
        unicode: Whether it has other signs than those of ASCII.
        now: The time, in Unix seconds.
    """

    columns: int
    unicode: bool
    now: float

    def sign(self, table: tuple[str, str, str, str]) -> str:
        """Return the sign of a status or a severity."""
        return table[0] if self.unicode else table[1]

    def ago(self, since: float | None) -> str:
        """Return how long ago something was."""
        if since is None:
            return "-"
        seconds = round(self.now - since)
        return "just now" if seconds < 5 else f"{format_duration(seconds * 1_000)} ago"


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else not unicodedata.combining(one) for one in text)


def cut(text: str, columns: int) -> str:
    """Return a text of at most this number of columns."""
    if width_of(text) <= columns:
        return text
    while width_of(text) > columns - 1:
        text = text[:-1]
    return f"{text}~" if columns > 0 else ""


def padded(text: str, columns: int) -> str:
    """Return a text of exactly this number of columns."""
    text = cut(text, columns)
    return text + " " * (columns - width_of(text))


def title(index: FleetIndex, look: Look, away: str | None) -> Row:
    """Return the first line: the pool, how full, and whether this is live."""
    totals = index.totals()
    clock = time.strftime("%H:%M:%S", time.localtime(look.now))
    hosts = len(index.shown)
    full = f"{index.leased:,} of {totals['size']:,} ports leased on {hosts:,} {'host' if hosts == 1 else 'hosts'}"
    if away:
        return row(f"NOT LIVE since {clock}: {away}  portlease {index.rules.name}  {full}", "31")
    return row(f"portlease {index.rules.name}  {full}  live {clock}", "1")


def counters(counts: Mapping[str, int], look: Look) -> list[Row]:
    """Return how many ports there are of each status that is named, on as many lines as it takes."""
    lines: list[list[tuple[str, str]]] = [[]]
    for status, table in SIGNS.items():
        if status not in counts:
            continue
        text = f"{look.sign(table)} {counts[status]:,} {table[2]}"
        used = sum(width_of(one) for one, _ in lines[-1])
        if used and used + len(GAP) + width_of(text) > look.columns:
            lines.append([])
        lines[-1].append((f"{GAP if lines[-1] else ''}{text}", table[3] if counts[status] else "2"))
    return [Row(tuple(parts)) for parts in lines]


def problem_rows(found: Iterable[Problem], look: Look) -> list[Row]:
    """Return a line for each problem, with since when."""
    rows = []
    for one in found:
        table = SEVERITIES[int(one.severity)]
        ago = look.ago(one.since) if one.since else ""
        room = max(10, look.columns - 13 - len(ago) - 1)
        head = f"{look.sign(table)} {table[2].ljust(9)} "
        parts = ((head, table[3]), (f"{padded(printable(one.what), room)} {ago}", "0"))
        rows.append(Row(parts, one.host, one.port, printable(one.command)))
    return rows


def condition_of(entry: HostEntry) -> str:
    """Return `drained` or `cordoned`, or an empty string for a host that gives out ports."""
    known = entry.known
    return "drained" if known and known.draining else "cordoned" if known and known.cordoned else ""


def host_row(index: FleetIndex, entry: HostEntry, look: Look, names: int) -> Row:
    """Return a host's line: a cell for each port, or counts where these do not fit."""
    worst = max((int(one.severity) for one in index.problems_of(entry, look.now)), default=0)
    table = SEVERITIES[worst]
    condition = condition_of(entry)
    head = (
        f"{look.sign(table)} {padded(f'{entry.name} ({condition})' if condition else entry.name, names)} ",
        table[3],
    )
    size = index.rules.size
    if size <= look.columns - names - 5:
        ports = range(index.rules.first, index.rules.last + 1)
        tables = [SIGNS[entry.cells[port].status if port in entry.cells else "free"] for port in ports]
        return Row((head, *((look.sign(one), one[3]) for one in tables)), entry.name)
    counts = {**entry.counts(), "free": index.free_of(entry)}
    shares = tuple((f"{look.sign(SIGNS[one])} {counts[one]:,}  ", SIGNS[one][3]) for one in SIGNS if counts.get(one))
    return Row((head, *shares), entry.name)


def sorted_hosts(index: FleetIndex, now: float) -> list[HostEntry]:
    """Return the hosts, worst first."""

    def badness(entry: HostEntry) -> int:
        return max((int(one.severity) for one in index.problems_of(entry, now)), default=0)

    return sorted(index.shown, key=lambda one: (-badness(one), one.name))


def pool_rows(index: FleetIndex, look: Look, terms: list[str], most_problems: int) -> list[Row]:
    """Return the pool: problems, counters, what a filter found, hosts worst first."""
    totals = index.totals()
    found = [one for one in index.problems(look.now)[0] if all(term in one.what.lower() for term in terms)]
    rows = [row(f"Problems ({len(found):,})" if found else "Nothing is wrong." if not terms else "Problems (0)", "1")]
    rows += problem_rows(found[:most_problems], look)
    if len(found) > most_problems:
        rows.append(
            row(
                f"  and {len(found) - most_problems:,} more: / filters, 'allocator doctor' and the status page list all"
            )
        )
    rows += [row(""), *counters({status: totals[status] for status in SIGNS}, look), row("")]
    if terms:
        _, leases, count = index.search(terms, MOST_FOUND)
        rows.append(row(f"Workers ({count:,})", "1"))
        rows += [port_row(index.hosts[one.host].cells[one.port], one.host, one.port, look) for one in leases]
        rows.append(row(""))
    hosts = [
        one
        for one in sorted_hosts(index, look.now)
        if all(term in f"{one.name} {condition_of(one)}".lower() for term in terms)
    ]
    rows.append(row(f"Hosts, worst first ({len(hosts):,})", "1"))
    names = min(max((len(one.name) for one in hosts), default=4) + 11, max(12, look.columns // 3))
    return rows + [host_row(index, one, look, names) for one in hosts]


def port_row(cell: Cell, host: str | None, port: int, look: Look) -> Row:
    """Return a port's line: its status, worker and last error."""
    table = SIGNS[cell.status]
    address = f"{host}:{port}" if host else str(port)
    worker = str(cell.lease.worker) if cell.lease else ""
    error = cell.lease.last_error or "" if cell.lease else ""
    restarts = f"{cell.lease.restarts} restarts  " if cell.lease and cell.lease.restarts else ""
    text = (
        f"{padded(address, 18 if host else 6)} {padded(worker, 28)} {padded(look.ago(cell.since), 11)} "
        f"{restarts}{error}"
    )
    head = (f"{look.sign(table)} {padded(table[2], 13)}", table[3])
    return Row((head, (printable(text).rstrip(), "0")), host, port)


def host_rows(index: FleetIndex, name: str, look: Look) -> list[Row]:
    """Return one host: its condition, problems, and ports that are not free, worst first."""
    entry = index.hosts.get(name)
    if entry is None:
        return [row(f"Host {name} is not known in this pool any more.")]
    condition = {
        "drained": "drained: gives out no new ports, its workers are stopped",
        "cordoned": "cordoned: gives out no new ports",
    }.get(condition_of(entry), "gives out ports")
    counts = {**entry.counts(), "free": index.free_of(entry)}
    rows = [
        row(f"Host {name}", "1"),
        row(f"{condition}; last heartbeat {look.ago(entry.heard_at)}"),
        *counters(counts, look),
        row(""),
        *problem_rows(index.problems_of(entry, look.now), look),
        row(""),
    ]  # fmt: skip
    cells = sorted(entry.cells.items(), key=lambda one: (BADNESS.index(one[1].status), one[0]))
    return rows + [_at(port_row(cell, None, port, look), name, port) for port, cell in cells]


def _at(shown: Row, host: str, port: int) -> Row:
    return Row(shown.parts, host, port, f"allocator show {port} --host {host}")


def lease_rows(index: FleetIndex, host: str, port: int, past: Past | None, look: Look) -> list[Row]:
    """Return one port: its worker and what happened to it."""
    cell = index.hosts[host].cells.get(port) if host in index.hosts else None
    table = SIGNS[cell.status if cell else "free"]
    facts: list[tuple[str, object]] = [("Status", f"{look.sign(table)} {table[2]}")]
    if cell is not None:
        facts.append(("In this state since", look.ago(cell.since)))
    if cell is not None and (lease := cell.lease) is not None:
        facts = [("Worker", lease.worker), *facts, ("Health", HEALTH[str(lease.state)])]
        facts += [("Last error", lease.last_error or "-"), ("Restarts", lease.restarts)]
        facts += [
            ("Process", f"pid {lease.pid}" if lease.pid else "not known"),
            ("Granted", look.ago(lease.granted_at)),
        ]
        facts += [(f"Label {name}", value) for name, value in lease.labels.items()]
    rows = [row(f"Port {port} on {host}", "1"), *(row(f"  {name.ljust(20)} {value}") for name, value in facts)]
    rows += [
        row(""),
        row(f"  {command('show', port, host=host, pool=index.named)}"),
        row(""),
        row("What happened to the port", "1"),
    ]
    events = past.events if past else ()
    for at, fields in events:
        what = " ".join(filter(None, (fields.get("type", "?"), fields.get("state"))))
        who = f"{fields.get('worker', '')}  {fields.get('error', '')}".rstrip()
        rows.append(row(f"  {look.ago(at).ljust(11)} {what.ljust(18)} {who}"))
    since = f" since {look.ago(past.since)}" if past and past.since else ""
    return [*rows, row(f"  {'That is all' if events else 'Nothing is known of it'}{since}.", "2")]
