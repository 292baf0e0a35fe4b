"""What the supervisor decides, without a process: health, restarts, whose error it was, what a template means."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from allocator.client.health import Health, Verdict
from allocator.model.leases import Lease
from allocator.model.names import WorkerId
from allocator.model.states import LeaseState
from allocator.supervisor.ports import reports_in_use
from allocator.supervisor.restarts import LONGEST_PAUSE_S, RestartMode, Restarts
from allocator.supervisor.templates import check_command, filled_command

LEASE = Lease(
    pool="p", host="web-1", port=5556, worker=WorkerId("o", "email", 3), fence=1, ttl_ms=1, granted_at=0, expires_at=1
)


def health(**changes: float | None) -> Health:
    return Health(**{"started_at": 100.0, "interval_s": 5.0, "give_up_after_s": 60.0} | changes)


def pauses_of(one: Health, until: float) -> list[float]:
    """Return the times between the looks at a worker that does not listen."""
    pauses, now = [], 100.0
    while now < until:
        pauses.append(one.next_at - now)
        now = one.next_at
        assert one.not_listening(now) is Verdict.NOTHING
    return pauses


def test_a_worker_that_starts_is_seen_to_listen_within_50_ms() -> None:
    pauses = pauses_of(health(), until=159.0)
    assert pauses[0] <= 0.005 + 1e-9
    assert max(pauses) <= 0.05


def test_a_worker_that_takes_minutes_to_start_is_looked_at_less_often() -> None:
    pauses = pauses_of(health(), until=300.0)
    assert abs(pauses[-1] - 1.0) < 1e-9
    assert max(pauses_of(health(slowest_look_s=0.25), until=159.0)) <= 0.25


def test_a_worker_that_answers_and_is_not_well_is_not_asked_all_the_time() -> None:
    one, now = health(), 100.0
    for _ in range(20):
        now = one.next_at
        one.bad(now, "503")
    assert one.next_at - now >= 0.9


def test_the_third_failure_in_a_row_degrades_and_one_good_answer_ends_it() -> None:
    one = health()
    assert one.good(101.0) is Verdict.READY
    assert [one.bad(102.0 + at, "x") for at in range(3)] == [Verdict.NOTHING, Verdict.NOTHING, Verdict.DEGRADED]
    assert one.state is LeaseState.DEGRADED
    assert one.good(106.0) is Verdict.READY
    assert one.bad(107.0, "x") is Verdict.NOTHING


def test_a_worker_is_given_up_when_its_time_is_over_and_not_before() -> None:
    one = health(give_up_after_s=2.0)
    one.good(101.0)
    assert one.bad(110.0, "x") is Verdict.NOTHING
    assert one.next_at == 112.0
    assert one.bad(111.9, "x") is Verdict.NOTHING
    assert one.bad(112.0, "x") is Verdict.GIVE_UP


def test_a_worker_without_a_limit_is_never_given_up() -> None:
    one = health(give_up_after_s=None)
    one.good(101.0)
    assert Verdict.GIVE_UP not in [one.bad(102.0 + 1_000 * at, "x") for at in range(50)]


def test_only_a_healthy_minute_forgives() -> None:
    one = health()
    one.good(101.0)
    assert not one.was_well(160.9)
    assert one.was_well(161.0)
    for at in range(3):
        one.bad(162.0 + at, "x")
    assert not one.was_well(200.0)


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_the_pause_before_a_restart_is_drawn_below_a_doubling_limit(seed: int, tries: int) -> None:
    restarts = Restarts(RestartMode.ON_FAILURE, 1_000, random.Random(seed))
    for at in range(tries):
        pause = restarts.pause_s(1, was_well=False)
        assert 0.0 <= pause <= min(LONGEST_PAUSE_S, 0.5 * 2**at)


def test_restarts_end_and_are_forgiven() -> None:
    restarts = Restarts(RestartMode.ON_FAILURE, 2, random.Random(1))
    assert None not in {restarts.pause_s(1, was_well=False) for _ in range(2)}
    assert restarts.pause_s(1, was_well=False) is None
    assert restarts.pause_s(1, was_well=True) is not None
    assert restarts.pause_s(0, was_well=True) is None
    assert Restarts(RestartMode.NEVER, 2, random.Random(1)).pause_s(1, was_well=False) is None
    assert Restarts(RestartMode.ALWAYS, 2, random.Random(1)).pause_s(0, was_well=False) is not None


def test_an_error_in_use_counts_for_the_workers_own_port_only() -> None:
    assert reports_in_use([b"Error: listen EADDRINUSE: address already in use :::5556"], 5556)
    assert reports_in_use([b"OSError: [Errno 98] Address already in use"], 5556)
    assert not reports_in_use([b"Error: listen EADDRINUSE: address already in use :::9229"], 5556)
    assert not reports_in_use([b"port 5556 is fine"], 5556)


@given(st.lists(st.text(), min_size=1))
def test_an_argument_with_its_braces_doubled_stays_as_it_was(arguments: list[str]) -> None:
    doubled = [argument.replace("{", "{{").replace("}", "}}") for argument in arguments]
    check_command(doubled)
    assert filled_command(doubled, None, LEASE, {}) == arguments


def test_the_ports_option_is_added_or_filled_in() -> None:
    assert filled_command(["w", "{org}-{instance}"], "--port", LEASE, {}) == ["w", "o-3", "--port=5556"]
    assert filled_command(["w"], "-p{port}", LEASE, {}) == ["w", "-p5556"]
    assert filled_command(["w", "{port.debug}"], None, LEASE, {"http": 5556, "debug": 9229}) == ["w", "9229"]


def test_a_worker_that_does_not_listen_in_time_is_given_up_and_looked_at_just_then() -> None:
    one = health(start_timeout_s=2.0)
    now = 100.0
    while now < 102.0:
        assert one.not_listening(now) is Verdict.NOTHING
        now = one.next_at
    assert now == 102.0
    assert one.not_listening(now) is Verdict.GIVE_UP


def test_a_worker_of_which_only_a_start_is_asked_is_ready_after_a_second() -> None:
    one = health()
    assert one.running(100.9, 1.0) is Verdict.NOTHING
    assert one.running(101.0, 1.0) is Verdict.READY


def test_the_time_that_a_worker_stood_still_counts_for_nothing() -> None:
    one = health(give_up_after_s=2.0, start_timeout_s=10.0)
    one.good(101.0)
    one.bad(102.0, "x")
    assert one.suspended(102.5)
    one.resumed(200.0)
    assert one.next_at == 200.0
    assert one.bad(200.0, "x") is Verdict.NOTHING
