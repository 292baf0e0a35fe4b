"""The comparison with other ways as tables: rates, factors, costs, and what each gives up."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from benchmarks.peers import locks, ours, pools
from benchmarks.peers.contract import Peer, Traits
from benchmarks.peers.measure import FILLS, KINDS, Cell
from benchmarks.table import Row, between

if TYPE_CHECKING:
    from collections.abc import Iterator

SAME_JOB: tuple[type[Peer], ...] = (pools.AllocatorPeer, *locks.ALL)
"""Those that lease over many hosts with a TTL after which the port is had by others."""
TRAIT_HEADINGS = {
    "hosts": "several hosts",
    "ttl": "TTL",
    "renewal": "renewal",
    "fencing": "fencing",
    "fairness": "fairness",
    "bind_check": "bind check",
    "tries": "how it finds a port",
}


class Cells:
    """The cells of a run, by size, fill, clients and peer."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._cells: dict[tuple[int, int, int, str], Cell] = {
            (one["ports"], one["fill"], one["clients"], one["peer"]): one["cell"] for one in found["cells"]
        }
        self.sizes = sorted({key[0] for key in self._cells})
        self.clients = sorted({key[2] for key in self._cells})

    def get(self, size: int, fill: int, clients: int, kind: type[Peer]) -> Cell | None:
        """Return a cell; None where nothing was to be measured."""
        return self._cells.get((size, fill, clients, kind.name))

    def factor(self, size: int, fill: int, clients: int, one: type[Peer], other: type[Peer]) -> float | None:
        """Return how many times the rate of `other` that of `one` is."""
        rates = [cell.rate if (cell := self.get(size, fill, clients, kind)) else None for kind in (one, other)]
        if rates[0] is None or rates[1] is None or rates[1].median <= 0:
            return None
        return rates[0].median / rates[1].median

    def addresses(self) -> Iterator[tuple[int, int, int]]:
        """Yield every size, fill and number of clients."""
        for size in self.sizes:
            for fill in FILLS:
                for clients in self.clients:
                    yield size, fill, clients


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines with a target: how far ahead of those that do the same job, where it is least so."""
    cells = Cells(found)
    table = []
    for one in (ours.Scripts, ours.Elsewhere, ours.Library):
        for other in SAME_JOB:
            factors = {
                address: factor
                for address in cells.addresses()
                if (factor := cells.factor(*address, one, other)) is not None
            }
            if not factors:
                continue
            least, most = min(factors, key=factors.__getitem__), max(factors.values())
            behind = sum(factor < 1 for factor in factors.values())
            where = f"least with {_rank(least)}; behind in {behind} of {len(factors)} cases; at most {most:,.0f}"
            factor = factors[least]
            table.append(Row(f"{one.name}: rate beside {other.name}", f"{factor:.2f}", where, "> 1", factor > 1))
    return table


def _rank(address: tuple[int, int, int]) -> str:
    size, fill, clients = address
    return f"{size:,} ports, {fill} % full, {clients} client{'s' if clients > 1 else ''}"


def tables(found: dict[str, Any]) -> list[str]:
    """Return the tables in Markdown."""
    cells = Cells(found)
    lines = ["", "### Claim and release, a second", ""]
    for size in cells.sizes:
        for clients in cells.clients:
            lines += _rates(cells, size, clients)
    lines += ["### How many times as fast", "", *_factors(cells)]
    lines += ["", "### What a claim and its release cost", "", *_costs(cells, found["memory"])]
    return [*lines, "", "### What each gives up", "", *_traits()]


def _rates(cells: Cells, size: int, clients: int) -> list[str]:
    many = f"{clients} clients" if clients > 1 else "1 client"
    heading = " | ".join("full: refusals" if fill == 100 else f"{fill} % full" if fill else "empty" for fill in FILLS)
    lines = [f"| {size:,} ports, {many} | {heading} |", "|---|" + "---:|" * len(FILLS)]
    for kind in KINDS:
        row = [cells.get(size, fill, clients, kind) for fill in FILLS]
        if any(row):
            lines.append(f"| {kind.name} | {' | '.join(_rate(cell) for cell in row)} |")
    return [*lines, ""]


def _rate(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.rate is None:
        return f"fails: {cell.error.replace('|', '/')}" if cell.error else "-"
    digits = 0 if cell.rate.median >= 10 else 3 if cell.rate.median < 0.1 else 1
    text = f"{cell.rate.median:,.{digits}f} ({between(cell.rate, digits)})"
    return f"{text}, {cell.refused:.0%} refused" if cell.refused >= 0.01 else text


def _factors(cells: Cells) -> list[str]:
    heading = " | ".join(f"{size:,}, {fill} %" for size in cells.sizes for fill in FILLS)
    lines = [f"| 1 client: its scripts / `PortAllocator` beside | {heading} |"]
    lines.append("|---|" + "---:|" * (len(FILLS) * len(cells.sizes)))
    for other in KINDS:
        if other.ours:
            continue
        row = []
        for size in cells.sizes:
            for fill in FILLS:
                both = [cells.factor(size, fill, 1, one, other) for one in (ours.Scripts, ours.Library)]
                row.append(" / ".join("-" if factor is None else _factor(factor) for factor in both))
        lines.append(f"| {other.name} | {' | '.join(row)} |")
    return lines


def _factor(factor: float) -> str:
    return f"{factor:,.0f}" if factor >= 10 else f"{factor:.2f}"


def _costs(cells: Cells, memory: dict[str, float]) -> list[str]:
    small, large = cells.sizes[0], cells.sizes[-1]
    addresses = ((small, 0), (large, 0), (large, 95), (large, 100))
    names = [f"{size:,}, {'full' if fill == 100 else f'{fill} %'}" for size, fill in addresses]
    heading = " | ".join(f"{name}: trips | server µs" for name in names)
    lines = [f"| 1 client | {heading} | bytes for a lease |", "|---|" + "---:|" * (2 * len(addresses) + 1)]
    for kind in KINDS:
        if not kind.on_redis:
            continue
        row = []
        for size, fill in addresses:
            cell = cells.get(size, fill, 1, kind)
            known = cell is not None and cell.trips is not None and cell.server_us is not None
            row += [f"{cell.trips:,.1f}", f"{cell.server_us:,.0f}"] if known and cell else ["-", "-"]
        row.append(f"{memory[kind.name]:,.0f}" if kind.name in memory else "-")
        lines.append(f"| {kind.name} | {' | '.join(row)} |")
    return lines


def _traits() -> list[str]:
    names = [field.name for field in fields(Traits)]
    lines = [f"| | {' | '.join(TRAIT_HEADINGS[name] for name in names)} |", "|---|" + "---|" * len(names)]
    shown = [kind for kind in KINDS if kind is not ours.Scripts]
    lines += [f"| {kind.name} | {' | '.join(getattr(kind.traits, name) for name in names)} |" for kind in shown]
    return lines
