"""What a lease costs beside a bare pair, in server time and in memory: the figures of `leases`, as lines of a table."""

from __future__ import annotations

from typing import Any

from benchmarks.leases import Bench, fill, full_pool, pair_rates, server_times
from benchmarks.servers import server
from benchmarks.table import Row, at_least, at_most, between, plain


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return the rates beside the bare pair by transport, the server's times, and what filling a pool showed."""
    rounds, pairs = (8, 50) if quick else (60, 100)
    found: dict[str, Any] = {"rounds": rounds, "pairs": pairs}
    with server(binary) as address:
        for transport in ("tcp", "unix"):
            found[transport] = pair_rates(Bench(address[transport]), rounds, pairs)
        bench = Bench(address["unix"])
        found["server_us"] = server_times(bench, rounds)
        found["fill"] = fill(bench, 5_000 if quick else 20_000)
        found["full_pool"] = full_pool(bench, rounds, pairs)
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    return [*_rates(found), *_server(found["server_us"]), *_fill(found["fill"])]


def _rates(found: dict[str, Any]) -> list[Row]:
    lines: list[Row] = []
    for transport, name in (("tcp", "loopback TCP"), ("unix", "Unix socket")):
        rates = found[transport]
        lines += [
            plain(f"bare pair, {name}", rates["bare_us"], " µs"),
            at_least(f"claim + release, scripts, {name}: rate beside the bare pair", rates["scripts"], 0.80),
            Row(
                f"the same with encoding and decoding into `Lease`, {name}",
                f"{rates['operations'].median:.2f}",
                between(rates["operations"], 2),
            ),
        ]
    lines.append(at_least("60,000 ports 95 % full, rate beside 44 empty ports", found["full_pool"]["ratio"], 0.85))
    return lines


def _server(times: dict[str, Any]) -> list[Row]:
    return [
        plain("server time, a script of the bare pair", times["bare"], " µs", 1),
        at_most("server time, claim", times["claim"], 25, " µs"),
        at_most("server time, release", times["release"], 25, " µs"),
        at_most("server time, claim, pipelined", times["claim_pipelined"], 25, " µs"),
        at_most("server time, release, pipelined", times["release_pipelined"], 25, " µs"),
        at_most("server time, renewal of one lease in a batch of 44", times["renew"], 4, " µs"),
    ]


def _fill(found: Any) -> list[Row]:
    what = f"memory for a lease, all keys ({found.leases:,} leases)"
    met = found.bytes_per_lease <= 1_000
    return [
        Row(what, f"{found.bytes_per_lease:,.0f} bytes", "", "≤ 1,000 bytes", met),
        plain("pipelined claims", found.claims_per_s, " a second"),
    ]
