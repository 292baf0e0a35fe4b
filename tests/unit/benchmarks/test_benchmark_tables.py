"""The promise: the page of the benchmarks says what was measured, and a peer that fails is a line, not a crash."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("redis_allocator", reason="the peers are in the dependency group bench")
pytest.importorskip("matplotlib", reason="it is in the dependency group bench")

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from benchmarks import growth, layers, page, plots  # noqa: E402
from benchmarks.peers import crowd, measure, ours, pools, tables  # noqa: E402
from benchmarks.peers.contract import Client, OutOfTimeError, Ports, TryingClient  # noqa: E402
from benchmarks.table import at_least, at_most  # noqa: E402
from benchmarks.timing import Spread, ratios, take_turns  # noqa: E402

RUN = "import sys; sys.path[:0] = ['.', 'scripts', 'tests']; from benchmarks.main import main; main()"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", RUN, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def cells(rates: dict[type, dict[int, float]]) -> dict:
    """Figures of one client at two sizes: the rate of each peer by fill, the same at both sizes."""
    return {
        "memory": {ours.Scripts.name: 700.0},
        "cells": [
            {"ports": size, "fill": fill, "clients": 1, "peer": kind.name, "cell": measure.Cell(rates=[rate] * 3)}
            for size in (44, 60_000)
            for kind, by_fill in rates.items()
            for fill, rate in by_fill.items()
        ],
    }


def curve(*at: int) -> dict:
    point = {"us": Spread(100, 90, 110), "server_us": Spread(40, 39, 41)}
    return {
        one: point | {"ratio": Spread(1 + number / 10, 1, 2), "server_ratio": Spread(1, 1, 1)}
        for number, one in enumerate(at)
    }


CURVES = {name: curve(0, 10, 1_000) for name in growth.NAMES}


def test_a_target_is_met_by_the_figure_that_is_shown() -> None:
    assert str(at_least("rate", Spread(0.796, 0.7, 0.9), 0.80)) == "| rate | 0.80 | 0.70-0.90 | ≥ 0.80 | yes |"
    assert str(at_most("time", Spread(25.06, 20, 30), 25, " µs")).endswith("| 25.1 µs | 20.0-30.0 | ≤ 25 µs | **no** |")


def test_cases_take_turns_and_ratios_are_those_of_the_same_round() -> None:
    order: list[str] = []
    times = take_turns({name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}, 2)
    assert order == ["a", "b", "b", "a"]
    assert ratios(times["a"], times["b"]).median == (1 / 2 + 4 / 3) / 2


def test_the_row_of_a_peer_names_where_it_is_nearest_or_ahead() -> None:
    found = cells({
        ours.Scripts: {0: 900.0, 95: 900.0},
        ours.Library: {0: 500.0, 95: 500.0},
        pools.AllocatorPeer: {0: 1_000.0, 95: 100.0},
    })  # fmt: skip
    scripts, library = tables.rows(found)
    assert (scripts.value, scripts.met) == ("0.90", False)
    assert scripts.spread == "least with 44 ports, 0 % full, 1 client; behind in 2 of 4 cases; at most 9"
    assert (library.value, library.met) == ("0.50", False)


def test_a_peer_that_fails_is_a_line_that_reports_it() -> None:
    found = cells({ours.Scripts: {0: 900.0}, pools.AllocatorPeer: {0: 1_000.0}})
    for one in found["cells"]:
        if one["peer"] == pools.AllocatorPeer.name:
            one["cell"].error = "ResponseError: a|b"
    text = "\n".join(tables.tables(found))
    assert "fails: ResponseError: a/b" in text
    assert tables.rows(found) == []
    assert [line for line in text.splitlines() if line.startswith(f"| {ours.Scripts.name} ") and "| 700 |" in line]


class Port(TryingClient):
    """Takes what is free of a set."""

    def __init__(self, ports: Ports, free: set[int]) -> None:
        super().__init__(ports, 1)
        self.free, self.tried = free, []

    def take(self, port: int) -> int | None:
        self.tried.append(port)
        return port if port in self.free else None


@pytest.mark.parametrize("size", [44, 2_000, 60_000])
def test_a_loop_over_locks_tries_every_port_once(size: int) -> None:
    client = Port(Ports(5_000, size), set())
    assert client.claim(time.perf_counter() + 60) is None
    assert sorted(client.tried) == list(range(5_000, 5_000 + size))


def test_a_loop_over_locks_that_runs_out_of_time_states_how_far_it_came() -> None:
    with pytest.raises(OutOfTimeError) as late:
        Port(Ports(5_000, 44), set()).claim(0.0)
    assert late.value.done == 1 / 44


class Scripted(Client):
    """Answers as it was told."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.released = list(answers), []

    def claim(self, until: float) -> object:  # noqa: ARG002  # it answers at once
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(self, lease: object) -> None:
        self.released.append(lease)


def order(most: int) -> crowd.Order:
    return crowd.Order(0, 1, 60, most, 0.001)


def test_granted_and_refused_claims_are_counted_apart_and_a_failure_ends_the_work() -> None:
    client = Scripted(1, None, 2, RuntimeError("gone\nagain"))
    done = crowd.work(client, order(most=100))
    assert (done.pairs, done.refused, done.error) == (2, 1, "RuntimeError: gone")
    assert client.released == [1, 2]
    assert crowd.work(Scripted(1, 2, 3), order(most=2)).pairs == 2
    assert crowd.work(Scripted(OutOfTimeError(0.25)), order(most=2)).refused == 0.25


def test_the_layers_add_up_to_the_whole() -> None:
    claim = {"whole": 200.0, "store": 100.0, "listeners": 30.0, "proof": 10.0}
    found = layers._layers([claim] * 3, 25.0, 30.0)
    assert found == {
        "whole": 200.0, "script": 25.0, "trip": 30.0, "driver": 45.0, "listeners": 30.0, "proof": 10.0, "python": 60.0,
    }  # fmt: skip
    assert sum(found[layer] for layer in layers.DONE) == found["whole"]
    assert len(layers.table({"claim": found, "release": found})) == len(layers.DONE) + 3


def test_growth_is_judged_by_the_dearest_point_and_waiting_has_no_limit() -> None:
    rows = growth.rows(CURVES)
    assert rows[0].what.startswith("time, 0 to 1,000 ports")
    assert (rows[0].value, rows[0].target, rows[0].met) == ("1.20", "≤ 1.2", True)
    assert [row.met for row in rows[-2:]] == [None, None]
    assert len(growth.curves(CURVES)) == len(growth.NAMES) * (3 + 3)


def test_the_same_figures_give_the_same_plots(tmp_path: Path) -> None:
    figures = {"growth": CURVES, "peers": cells({kind: {0: 900.0, 50: 800.0} for kind, _, _ in plots.SHOWN})}
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plots.write(figures, tmp_path / name)
        written.append([(tmp_path / name / file).read_bytes() for file in ("growth.svg", "peers.svg")])
    assert written[0] == written[1]
    assert b"<svg" in written[0][0]


def test_each_part_has_a_name_of_its_own_and_a_page_needs_all_of_them() -> None:
    assert len({part.name for part in page.PARTS}) == len(page.PARTS)
    refused = bench("--growth", "--out", "somewhere.md")
    assert refused.returncode == 2
    assert "a page is of a whole run" in refused.stderr


def test_a_part_is_measured_and_printed() -> None:
    done = bench("--limits", "--quick")
    assert done.returncode == 0, done.stderr
    assert "## Against the limits" in done.stdout
    assert "| bare pair (two scripts), Unix socket |" in done.stdout
