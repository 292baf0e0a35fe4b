"""The rules of the checker on histories written by hand: what breaks each, and what excuses it."""

from __future__ import annotations

from typing import Any

import pytest
from torture.checker import check
from torture.history import OK, REFUSED, UNKNOWN, Call, Fault, History, Listening

TTL_S, GRACE_S = 2.0, 0.5
ONE, TWO = "1" * 32, "2" * 32


def history(*calls: Call, **others: Any) -> History:
    made = History(TTL_S, GRACE_S, calls=list(calls))
    for name, value in others.items():
        setattr(made, name, value)
    return made.finish()


def call(
    op: str, began: float, code: str = "", *, token: str = ONE, actor: str = "a", port: int = 9, **fields: Any
) -> Call:
    outcome = fields.pop("outcome", OK)
    item = {"token": token, "worker": f"{actor}/email#0", "port": port, "ttl_ms": 2_000, "ticket": "", "code": code}
    return Call(actor, op, began, fields.pop("ended", began + 0.01), outcome, [item | fields])


def claimed(began: float, fence: int, **fields: Any) -> Call:
    return call("claim", began, "granted", fence=fence, **fields)


def by_two(began: float, fence: int, **fields: Any) -> Call:
    return claimed(began, fence, token=TWO, actor="b", **fields)


def rules(made: History) -> set[str]:
    return {violation.rule for violation in check(made)}


FLUSH = Fault("FLUSHALL", 0.5, 0.6, loses_since=0.0)


def ahead(seconds: float) -> Fault:
    return Fault("clock", 0.5, 0.6, jump_s=seconds)


def test_two_tokens_never_hold_one_port_at_once() -> None:
    assert rules(history(claimed(0.0, 1), by_two(1.0, 2))) == {"a: holdings overlap", "a: no grace"}
    assert rules(history(claimed(0.0, 1), by_two(2.6, 2))) == set()


def test_a_release_ends_what_is_certain_when_it_is_sent() -> None:
    released = call("release", 0.5, "released")
    assert rules(history(claimed(0.0, 1), released, by_two(1.0, 2))) == set()
    unknown = call("release", 0.5, outcome=UNKNOWN, ended=4.0)
    assert rules(history(claimed(0.0, 1), unknown, by_two(1.0, 2))) == set()


def test_lost_data_excuses_an_overlap_with_what_was_confirmed_before() -> None:
    assert rules(history(claimed(0.0, 1), by_two(1.0, 2), faults=[FLUSH])) == set()
    renewed = call("renew", 0.7, "renewed", fence=1)
    assert "a: holdings overlap" in rules(history(claimed(0.0, 1), renewed, by_two(1.0, 2), faults=[FLUSH]))


def test_of_two_grants_by_two_primaries_the_newer_takes_over_within_a_ttl() -> None:
    both = Fault("two primaries", 0.0, 0.6, loses_since=0.0)
    kept, again = call("keep", 1.0, "renewed", fence=1), call("renew", 1.4, "reasserted", token=TWO, actor="b", fence=3)
    lost = call("renew", 1.6, "lost", outcome=REFUSED)
    assert rules(history(claimed(0.1, 1), by_two(0.3, 2), kept, again, lost, faults=[both])) == set()
    found = rules(history(claimed(0.1, 1), by_two(0.8, 2), kept, again, lost, faults=[both]))
    assert {"a: holdings overlap", "c: taken away"} <= found
    late = call("keep", 2.9, "renewed", fence=1), call("renew", 3.0, "reasserted", token=TWO, actor="b", fence=3)
    assert "a: holdings overlap" in rules(history(claimed(0.1, 1), by_two(0.3, 2), kept, *late, faults=[both]))


def test_lost_data_never_excuses_a_grant_of_a_port_that_is_listened_on() -> None:
    leased = [{"actor": "b", "at": 1.1, "port": 9, "fence": 2, "token": TWO}]
    made = history(claimed(0.0, 1), by_two(1.0, 2), faults=[FLUSH], leased=leased)
    made.listenings = [Listening("a", 9, 0.1, 3.0)]
    assert rules(made) == {"a: listener"}
    made.listenings = [Listening("a", 9, 0.1, 1.05)]
    assert rules(made) == set()


def test_a_port_that_was_declined_before_another_one_was_leased_with_that_token_is_not_proven() -> None:
    declined = call("decline", 1.05, "declined", token=TWO, actor="b", ended=1.06)
    leased = [{"actor": "b", "at": 1.1, "port": 10, "fence": 3, "token": TWO}]
    made = history(claimed(0.0, 1), by_two(1.0, 2), declined, by_two(1.07, 3, port=10), faults=[FLUSH], leased=leased)
    made.listenings = [Listening("a", 9, 0.1, 3.0)]
    assert rules(made) == set()


@pytest.mark.parametrize(("jump_s", "excused"), [(0.4, False), (3.0, True)])
def test_a_clock_that_goes_ahead_excuses_an_overlap_only_beyond_the_grace(jump_s: float, excused: bool) -> None:
    found = rules(history(claimed(0.0, 1), by_two(1.0, 2), faults=[ahead(jump_s)]))
    assert ("a: holdings overlap" not in found) is excused


def test_a_port_rests_for_the_grace_after_its_lease_ran_out() -> None:
    assert rules(history(claimed(0.0, 1), by_two(2.1, 2))) == {"a: no grace"}
    assert rules(history(claimed(0.0, 1), by_two(2.488, 2))) == {"a: no grace"}
    assert rules(history(claimed(0.0, 1), by_two(2.4895, 2))) == set()
    assert rules(history(claimed(0.0, 1), by_two(2.1, 2), faults=[ahead(0.4)])) == set()


def test_one_worker_never_has_two_leases() -> None:
    other = claimed(1.0, 2, token=TWO, port=10)
    assert rules(history(claimed(0.0, 1), other)) == {"a: worker twice"}


def test_fences_grow_over_calls_that_do_not_overlap() -> None:
    assert rules(history(claimed(0.0, 7), by_two(3.0, 6))) == {"b: fence"}
    assert rules(history(claimed(0.0, 7), by_two(3.0, 7))) == {"b: fence", "b: fence twice"}
    assert rules(history(claimed(0.0, 7, port=8, ended=3.1), by_two(3.0, 6))) == set()


def test_lost_data_excuses_no_smaller_fence_unless_the_clock_was_behind() -> None:
    lost = Fault("FLUSHALL", 2.5, 2.6, loses_since=0.0)
    back = Fault("clock", 2.3, 2.4, jump_s=-5.0)
    assert rules(history(claimed(0.0, 7), by_two(3.0, 6), faults=[lost])) == {"b: fence"}
    assert rules(history(claimed(0.0, 7), by_two(3.0, 6), faults=[lost, back])) == set()


def test_a_token_that_ended_takes_no_effect_again() -> None:
    released, again = call("release", 0.5, "released"), call("renew", 1.0, "reasserted", fence=2)
    assert rules(history(claimed(0.0, 1), released, again)) == {"c: ended token"}
    lost = Fault("FLUSHALL", 0.7, 0.8, loses_since=0.0)
    assert rules(history(claimed(0.0, 1), released, again, faults=[lost])) == set()


def test_many_events_after_a_declined_grant_hide_that_an_older_token_had_ended() -> None:
    declined = [by_two(0.6, 2), call("decline", 0.7, "declined", token=TWO, actor="b")]
    before = [claimed(0.0, 1), call("release", 0.5, "released"), *declined]
    again = call("renew", 2.0, "reasserted", fence=3)
    others = [Call("c", "release", 1.0 + number / 1_000, 1.0 + number / 1_000, OK, []) for number in range(400)]
    assert rules(history(*before, *others, again)) == set()
    assert "c: ended token" in rules(history(*before, again))


def test_a_claim_that_was_sent_twice_may_make_its_token_live_again() -> None:
    twice = claimed(0.0, 1)
    twice.attempts = 2
    again = call("release", 1.0, "released")
    assert rules(history(twice, call("release", 0.5, "released"), again)) == set()


def test_a_waiting_claim_goes_on_with_its_token_after_it_had_to_decline_a_port() -> None:
    declined, other = call("decline", 0.5, "declined"), claimed(0.7, 2, port=10)
    assert rules(history(claimed(0.0, 1), declined, other, call("release", 1.0, "released", port=10))) == set()
    assert rules(history(claimed(0.0, 1), declined, call("release", 1.0, "released"))) == {"c: ended token"}


def test_a_heartbeat_confirms_a_lease_as_a_renewal_does() -> None:
    kept = call("keep", 1.5, "renewed", fence=1)
    assert rules(history(claimed(0.0, 1), by_two(3.0, 2))) == set()
    assert "a: holdings overlap" in rules(history(claimed(0.0, 1), kept, by_two(3.0, 2)))
    assert rules(history(claimed(0.0, 1), call("keep", 1.5, "left", fence=1), by_two(3.0, 2))) == set()


def test_a_stale_token_does_nothing_after_a_newer_grant() -> None:
    stale = call("release", 5.0, "released")
    assert rules(history(claimed(0.0, 1), by_two(3.0, 2), stale)) == {"c: stale token"}


def test_a_newer_grant_that_was_declined_does_not_count() -> None:
    declined = call("decline", 3.5, "declined", token=TWO)
    again = call("renew", 6.0, "reasserted", fence=3)
    assert rules(history(claimed(0.0, 1), by_two(3.0, 2), declined, again)) == set()
    assert rules(history(claimed(0.0, 1), by_two(3.0, 2), again)) == {"c: stale token"}


@pytest.mark.parametrize(
    ("declined", "broken"), [({9: {3}}, set()), ({9: {1, 5}, 8: {3}}, {"c: stale token"}), ({}, {"c: stale token"})]
)
def test_a_newer_grant_of_a_command_that_was_declined_does_not_count_either(
    declined: dict[int, set[int]], broken: set[str]
) -> None:
    released, again = call("release", 3.2, "released", token=TWO), call("renew", 4.0, "reasserted", fence=4)
    made = history(claimed(0.0, 1), by_two(3.0, 2), released, again, declined=declined)
    assert rules(made) == broken


def test_a_sure_holder_is_not_notified_that_its_lease_is_lost() -> None:
    lost = call("renew", 1.0, "lost", fence=1)
    assert rules(history(claimed(0.0, 1), lost)) == {"c: taken away"}
    assert rules(history(claimed(0.0, 1), lost, faults=[FLUSH])) == set()
    late = call("renew", 1.5, "lost", fence=1, ended=2.5)
    assert rules(history(claimed(0.0, 1), late)) == set()


def snapshot(at: float, *, lease: dict | None = None, score_ms: float = 0.0, mark: str = "") -> dict[str, Any]:
    grant = {"mark": mark, "fence": 1, "worker": "a/email#0"}
    leases = {"9": lease} if lease else {}
    return {
        "began": at,
        "ended": at,
        "now_ms": at * 1_000,
        "leases": leases,
        "grants": {"9": grant},
        "scores": {"9": score_ms},
    }


def test_no_lease_outlives_its_holder_by_more_than_its_ttl() -> None:
    lease = {"fence": 1, "worker": "a/email#0", "left_ms": 500.0}
    deaths = {"a": (0.9, 1.0)}
    late, early = snapshot(4.0, lease=lease, score_ms=5_000), snapshot(2.0, lease=lease, score_ms=3_000)
    assert rules(history(snapshots=[late], deaths=deaths)) == {"d: outlived", "d: kept"}
    assert rules(history(snapshots=[early], deaths=deaths)) == set()
    held_back = [Fault("SIGSTOP", 0.5, 3.0, holds_back=True)]
    assert rules(history(snapshots=[late], deaths=deaths, faults=held_back)) == set()


def test_a_dead_holders_port_is_claimable_after_its_grace() -> None:
    deaths = {"a": (0.9, 1.0)}
    assert rules(history(snapshots=[snapshot(4.5, score_ms=6_000)], deaths=deaths)) == {"d: kept"}
    assert rules(history(snapshots=[snapshot(4.5, score_ms=4_400)], deaths=deaths)) == set()


def test_a_live_lease_is_its_ports_open_grant_and_keeps_it_from_claims() -> None:
    lease = {"fence": 1, "worker": "a/email#0", "left_ms": 500.0}
    assert rules(history(snapshots=[snapshot(1.0, lease=lease, score_ms=2_000)])) == set()
    assert rules(history(snapshots=[snapshot(1.0, lease=lease, score_ms=900)])) == {"f: score"}
    assert rules(history(snapshots=[snapshot(1.0, lease=lease, score_ms=2_000, mark="-")])) == {"f: grant"}


def waits(ticket: str, op: str, began: float, **fields: Any) -> Call:
    return Call(ticket, op, began, began + 0.01, OK, [{"ticket": ticket, "condition": "any", "mode": "join"} | fields])


def test_nobody_is_served_before_one_who_was_surely_in_the_queue() -> None:
    first, second = waits("w1", "wait", 0.0), waits("w2", "wait", 0.5)
    passing = by_two(1.0, 2, ticket="w2")
    assert rules(history(first, second, passing)) == {"e: passed by"}
    assert rules(history(first, by_two(1.0, 2))) == {"e: passed by"}
    assert rules(history(first, second, claimed(1.0, 2, ticket="w1"))) == set()


def test_who_leaves_a_port_for_all_who_are_ahead_passes_nobody_by() -> None:
    first, passing = waits("w1", "wait", 0.0), by_two(1.0, 2, port=10)
    assert rules(history(first, passing, ports=2)) == set()
    leased = claimed(-0.1, 1)
    assert rules(history(leased, first, passing, ports=2)) == {"e: passed by"}
    assert rules(history(leased, call("release", 0.9), first, passing, ports=2)) == set()
    assert rules(history(leased, first, passing, ports=2, faults=[FLUSH])) == set()


def test_a_waiter_that_was_silent_for_too_long_may_be_passed_by() -> None:
    first, second = waits("w1", "wait", 0.0), waits("w2", "wait", 0.5)
    assert rules(history(first, second, by_two(2.5, 2, ticket="w2"))) == set()
    there = waits("w1", "present", 1.0)
    assert rules(history(first, second, there, by_two(2.5, 2, ticket="w2"))) == {"e: passed by"}


def test_a_waiter_whose_claim_may_come_twice_may_have_been_served() -> None:
    first, second = waits("w1", "wait", 0.0), waits("w2", "wait", 0.5)
    asked = Call("w1", "claim", 0.6, 0.61, REFUSED, [{"ticket": "w1", "token": ONE, "worker": "w", "code": "queued"}])
    passing = by_two(1.0, 2, ticket="w2")
    assert rules(history(first, second, asked, passing)) == {"e: passed by"}
    twice = Fault("traffic duplicated", 0.55, 0.9, repeats=True)
    assert rules(history(first, second, asked, passing, faults=[twice])) == set()


def test_a_queue_that_was_lost_begins_anew() -> None:
    first, second = waits("w1", "wait", 0.0), waits("w2", "wait", 0.7)
    again = waits("w1", "wait", 0.8)
    assert rules(history(first, second, again, by_two(1.0, 2, ticket="w2"), faults=[FLUSH])) == set()
    third = waits("w3", "wait", 0.9)
    passing = by_two(1.0, 2, ticket="w3")
    assert rules(history(first, second, again, third, passing, faults=[FLUSH])) == {"e: passed by"}


def test_what_does_not_agree_in_the_end_and_what_crashed_is_reported() -> None:
    settled = [{"when": "all have left", "problems": ["keys are left: ['k']"]}]
    crashes = [{"actor": "a", "error": "Traceback"}]
    found = rules(history(settled=settled, crashes=crashes, rows=[{"old": 2, "new": 1}]))
    assert found == {"f: all have left", "crash", "c: row"}
