"""(e) The line of waiters: who was surely in it, and who was served before."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torture.history import OK, UNKNOWN
from torture.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torture.facts import Facts
    from torture.history import Call

from allocator.operations.queue import ALIVE_MS

ALIVE_S = ALIVE_MS / 1_000


@dataclass(slots=True)
class Waiter:
    """A ticket: when it had surely joined, and when it was surely in line.

    Attributes:
        asked: When it first asked to join.
        present: Stretches of time in which it was surely in line, each with the time from which its place counts: of
            its first join, or of the first one after the server had lost its data.
    """

    ticket: str
    asked: float
    present: list[tuple[float, float, float]]


def waits_are_served_in_order(facts: Facts) -> Iterator[Violation]:
    """No claim is granted while those who joined the queue before, and were surely there, lack a port by it.

    A port that is not surely leased may be free; where these are enough for all who were ahead as well, the claim took
    nothing from them.
    """
    waiters = _waiters(facts)
    asked = {waiter.ticket: waiter.asked for waiter in waiters}
    for call in facts.history.calls:
        if call.op != "claim" or call.items[0].get("code") != "granted" or int(call.items[0].get("supersede") or 0):
            continue
        own = asked.get(call.items[0]["ticket"], call.began)
        passed = [
            waiter
            for waiter in waiters
            if waiter.ticket != call.items[0]["ticket"]
            and any(
                since < call.began and until > call.ended and joined < min(own, call.began)
                for since, until, joined in waiter.present
            )
        ]
        if passed and facts.history.ports - facts.surely_leased(call) < len(passed) + len(call.items):
            yield Violation("e: passed by", "a waiter was passed by", (passed[0], call))


def _waiters(facts: Facts) -> list[Waiter]:
    by_ticket: dict[str, list[Call]] = defaultdict(list)
    for call in facts.history.calls:
        if call.op in {"wait", "present", "claim"} and (ticket := call.items[0].get("ticket")):
            by_ticket[ticket].append(call)
    return [
        _waiter(facts, ticket, sorted(calls, key=lambda call: call.began))
        for ticket, calls in by_ticket.items()
        if any(_joins(call) for call in calls)
    ]


def _joins(call: Call) -> bool:
    return call.op == "wait" and call.items[0].get("mode") == "join" and call.outcome == OK


def _waiter(facts: Facts, ticket: str, calls: list[Call]) -> Waiter:
    died = facts.history.deaths.get(calls[0].actor, (math.inf, math.inf))[0]
    joins = [call for call in calls if _joins(call)]
    stretches = [
        (since, end, _counts_from(facts, joins, since))
        for since, until in _stretches(facts, calls)
        if (end := _undisturbed(facts, since, min(until, died))) > since
    ]
    return Waiter(ticket, min(call.began for call in calls if call.op == "wait"), stretches)


def _stretches(facts: Facts, calls: list[Call]) -> Iterator[tuple[float, float]]:
    """Yield when a ticket was surely in line: from a join on, as long as it found in time that it was still there."""
    since, until = math.inf, -math.inf
    for call in calls:
        if (
            _may_be_served(facts, call)
            or call.items[0].get("mode") == "leave"
            or call.items[0].get("condition", "any") not in {"any", ""}
        ):
            until = min(until, call.began)
            if until > since:
                yield since, until
            since, until = math.inf, -math.inf
        elif call.op == "claim" or call.outcome != OK:
            continue
        elif call.ended <= until:
            until = call.began + ALIVE_S
        elif _joins(call) and not any(
            loss.began <= call.ended and call.began <= loss.ended for loss in facts.excuses.losses
        ):
            if until > since:
                yield since, until
            since, until = call.ended, call.began + ALIVE_S
    if until > since:
        yield since, until


def _may_be_served(facts: Facts, call: Call) -> bool:
    """Return whether a claim has, or may have, ended a waiter's wait: also by being carried out once more, later."""
    return call.op == "claim" and (
        call.outcome == UNKNOWN
        or call.items[0].get("code") in {"granted", "same"}
        or facts.excuses.repeated(call.began, call.ended)
    )


def _counts_from(facts: Facts, joins: list[Call], since: float) -> float:
    lost = max((loss.ended for loss in facts.excuses.losses if loss.began <= since), default=-math.inf)
    return min((call.ended for call in joins if call.began >= lost), default=since)


def _undisturbed(facts: Facts, since: float, until: float) -> float:
    """Return when a stretch ends for certain: at the first loss of data or jump ahead in it."""
    for fault in (*facts.excuses.losses, *(jump for jump in facts.excuses.jumps if jump.jump_s > 0)):
        if fault.began <= until and fault.ended >= since:
            until = fault.began
    return until
