"""The road to a lease without Redis, kernel or clock: a test answers each step from a list."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from scripted_redis import make_context

from allocator.model.errors import (
    AllocatorError,
    ConfigurationError,
    CordonedError,
    ExhaustedError,
    HeldError,
    InvalidInputError,
    PortRefusedError,
    StoreUnavailableError,
)
from allocator.model.leases import Lease
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations.attempt import Attempt, ClaimRequest
from allocator.operations.claim import claim, first_attempt
from allocator.operations.renew import RenewOutcome
from allocator.operations.steps import (
    AwaitTurn,
    CheckRow,
    DescribeListener,
    JudgeHolder,
    Judgement,
    Pause,
    ProvePorts,
    ReadListeners,
    Standing,
    StoreLeases,
    StoreTokens,
    Verdict,
    WriteRow,
)
from allocator.protocol.signatures.claim import (
    Again,
    Cordoned,
    Exhausted,
    Granted,
    Held,
)
from allocator.protocol.signatures.end import EndCall, Ended
from allocator.protocol.signatures.queue import JoinCall, LeaveCall
from allocator.protocol.wire import ScriptCall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.operations.context import Context

EMAIL = WorkerId("org-1", "email")
POOL = PoolSpec(name="p", first=7001, last=7009)
REQUEST = ClaimRequest(pool="p", worker=EMAIL)


def lease(port: int = 7001, *, worker: WorkerId = EMAIL, fence: int = 1, token: str | None = "a" * 32) -> Lease:
    return Lease(
        pool="p", host="web-1", port=port, worker=worker, fence=fence, ttl_ms=30_000,
        granted_at=1.0, expires_at=31.0, token=token, deadline=1_030.0,
    )  # fmt: skip


class Reply:
    """What a script answers, already decoded: it stands in the way of the signature's own decoding."""

    def __init__(self, value: object) -> None:
        self.value = value


def no_ports(*_: object, **__: object) -> Iterator[object]:
    """What an error counts is asked outside of the order of the steps."""
    yield from ()
    return []


class Road:
    """Drives a claim; `answers` are taken one after the other, each for the kind of step that it is paired with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[type, object]) -> None:
        self.answers = list(answers)
        self.steps: list[object] = []
        for call in ("claim.ClaimCall", "end.EndCall", "queue.JoinCall", "queue.LeaveCall"):
            monkeypatch.setattr(f"allocator.protocol.signatures.{call}.decode", lambda _self, raw, **_: raw.value)
        monkeypatch.setattr("allocator.operations.listing.ports", no_ports)

    def answer(self, step: Any) -> Any:
        kind = type(step.signature) if isinstance(step, ScriptCall) else type(step)
        self.steps.append(step.signature if isinstance(step, ScriptCall) else step)
        if isinstance(step, StoreTokens) and not self.expects(StoreTokens):
            return step.tokens
        if isinstance(step, ReadListeners) and not self.expects(ReadListeners):
            return frozenset()
        if isinstance(step, StoreLeases) and not self.expects(StoreLeases):
            return True
        if isinstance(step, ProvePorts) and not self.expects(ProvePorts):
            return frozenset()
        wanted, value = self.answers.pop(0)
        assert wanted.__name__ in {kind.__name__, "ClaimCall" if kind.__name__ == "ClaimCall" else ""}, (wanted, step)
        if isinstance(value, BaseException):
            raise value
        return Reply(value) if isinstance(step, ScriptCall) else value

    def expects(self, kind: type) -> bool:
        return bool(self.answers) and self.answers[0][0] is kind

    def drive(self, context: Context, request: ClaimRequest = REQUEST) -> tuple[Lease, ...]:
        context.rules["p"] = POOL
        operation = claim(context, request)
        try:
            step = next(operation)
            while True:
                try:
                    answer = self.answer(step)
                except AssertionError:
                    raise
                except BaseException as error:  # noqa: BLE001  # as a driver does
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            assert self.answers == []
            return end.value

    def kinds(self) -> list[str]:
        return [type(step).__name__ for step in self.steps]

    def of(self, kind: type) -> list[Any]:
        return [step for step in self.steps if isinstance(step, kind)]


class ClaimCall:
    """Stands for the signature in a list of answers."""


ENDED = (Ended(fence=1),)
GRANTED = (ClaimCall, Granted(leases=(lease(),)))


def test_the_steps_of_a_plain_claim_come_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, GRANTED)
    assert road.drive(make_context()) == (lease(),)
    assert road.kinds() == ["StoreTokens", "ReadListeners", "ClaimCall", "ProvePorts", "StoreLeases"]


def test_several_ports_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (lease(), lease(7002, worker=replace(EMAIL, plugin="email+debug")))
    road = Road(monkeypatch, (ClaimCall, Granted(leases=both)))
    assert road.drive(make_context(), replace(REQUEST, names=("http", "debug"))) == both
    assert road.kinds() == ["StoreTokens", "ReadListeners", "ClaimCall", "ProvePorts", "StoreLeases"]
    assert road.of(ProvePorts) == [ProvePorts((7001, 7002))]


def test_of_another_host_nothing_is_read_and_nothing_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context()
    context.elsewhere = True
    road = Road(monkeypatch, GRANTED)
    road.drive(context)
    assert road.kinds() == ["StoreTokens", "ClaimCall", "StoreLeases"]


def test_a_claim_that_was_not_finished_is_taken_up_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, (StoreTokens, ("b" * 32,)), GRANTED)
    road.drive(make_context())
    assert [one.token for call in road.steps if hasattr(call, "wanted") for one in call.wanted] == ["b" * 32]


def test_a_bounded_search_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, (ClaimCall, Again(look_from=7004)), GRANTED)
    road.drive(make_context())
    assert [call.look_from for call in road.steps if hasattr(call, "wanted")] == [0, 7004]


def test_a_refused_port_is_declined_the_others_given_back_and_all_claimed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = (lease(), lease(7002, worker=replace(EMAIL, plugin="email+debug")))
    later = (lease(7003), lease(7004, worker=both[1].worker))
    road = Road(
        monkeypatch,
        (ClaimCall, Granted(leases=both)), (ProvePorts, frozenset({7002})), (DescribeListener, "node (pid 4242)"),
        (EndCall, ENDED), (EndCall, ENDED),
        (ClaimCall, Granted(leases=later)),
    )  # fmt: skip
    assert road.drive(make_context(), replace(REQUEST, names=("http", "debug"))) == later


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConfigurationError("no rights"), RuntimeError("a bug")])
def test_whatever_ends_a_claim_after_its_grant_gives_the_lease_back(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    road = Road(monkeypatch, GRANTED, (ProvePorts, error), (EndCall, ENDED))
    with pytest.raises(type(error)):
        road.drive(make_context())
    assert road.kinds()[-2:] == ["StoreLeases", "EndCall"]
    assert road.of(StoreLeases)[-1].leases == ()


def test_leases_that_cannot_be_written_down_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    full = ConfigurationError("the disk is full")
    road = Road(monkeypatch, GRANTED, (StoreLeases, full), (EndCall, ENDED))
    with pytest.raises(ConfigurationError, match="disk is full"):
        road.drive(make_context())
    assert road.kinds()[-1] == "EndCall"


def test_a_redis_that_does_not_answer_leaves_the_token_for_the_next_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, (ClaimCall, StoreUnavailableError("away")))
    with pytest.raises(StoreUnavailableError):
        road.drive(make_context())
    assert road.kinds()[-1] == "ClaimCall"


def held(fence: int = 9, worker: WorkerId = EMAIL) -> Held:
    return Held(holder=lease(7005, fence=fence, worker=worker, token=None), remaining_ms=11_000, now_ms=20_000)


def test_over_a_dead_holder_the_same_claim_goes_on_with_its_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, (ClaimCall, held()), (JudgeHolder, Judgement(Verdict.DEAD)), GRANTED)
    road.drive(make_context())
    assert [call.superseded for call in road.steps if hasattr(call, "wanted")] == [0, 9]


def test_a_living_holder_is_an_error_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, (ClaimCall, held()), (JudgeHolder, Judgement(Verdict.ALIVE)))
    with pytest.raises(HeldError, match="already has a lease on web-1:7005"):
        road.drive(make_context())


def test_an_orphan_is_given_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    orphan = (JudgeHolder, Judgement(Verdict.ORPHAN))
    road = Road(
        monkeypatch, (ClaimCall, held()), orphan, (Pause, None), orphan, (Pause, None),
        (JudgeHolder, Judgement(Verdict.DEAD)), GRANTED,
    )  # fmt: skip
    assert road.drive(make_context())


def test_an_orphan_that_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1_000, 100_000))
    context = replace(make_context(), clock=lambda: float(next(now)))
    orphan = (JudgeHolder, Judgement(Verdict.ORPHAN))
    road = Road(monkeypatch, (ClaimCall, held()), orphan, (Pause, None), orphan)
    with pytest.raises(HeldError, match="its supervisor is dead, but its worker still listens there"):
        road.drive(context)


def test_a_lease_whose_token_is_here_is_claimed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = (JudgeHolder, Judgement(Verdict.OURS, "c" * 32))
    road = Road(monkeypatch, (ClaimCall, held()), ours, (ClaimCall, Cordoned()))
    with pytest.raises(CordonedError):
        road.drive(make_context())
    tokens = [one.token for call in road.steps if hasattr(call, "wanted") for one in call.wanted]
    assert tokens[1] == "c" * 32


def test_who_waits_takes_a_ticket_and_claims_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from allocator.protocol.signatures.queue import Position

    front = Position(position="1", ahead=0, look_ms=None, held=0)
    none = Exhausted(free_ms=5_000)
    road = Road(
        monkeypatch, (ClaimCall, none), (JoinCall, front), (ClaimCall, none), (AwaitTurn, True), (JoinCall, front),
        GRANTED,
    )  # fmt: skip
    assert road.drive(make_context(), replace(REQUEST, wait_s=30.0))
    tickets = [call.ticket for call in road.steps if hasattr(call, "wanted")]
    assert tickets[0] == ""
    assert tickets[1] == tickets[2] != ""


def test_who_does_not_wait_gets_the_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    road = Road(monkeypatch, (ClaimCall, Exhausted(free_ms=5_000)))
    with pytest.raises(ExhaustedError) as full:
        road.drive(make_context())
    assert full.value.retry_after == 5


def test_ctrl_c_in_the_queue_gives_up_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    from allocator.protocol.signatures.queue import Position

    front = Position(position="1", ahead=0, look_ms=None, held=0)
    none = Exhausted(free_ms=5_000)
    road = Road(
        monkeypatch, (ClaimCall, none), (JoinCall, front), (ClaimCall, none), (AwaitTurn, KeyboardInterrupt()),
        (LeaveCall, None),
    )  # fmt: skip
    monkeypatch.setattr("allocator.operations.claim.find", lambda *_: iter(()))
    with pytest.raises((KeyboardInterrupt, TypeError)):
        road.drive(make_context(), replace(REQUEST, wait_s=30.0))
    assert "LeaveCall" in road.kinds()


def test_a_row_in_the_way_declines_the_port_and_claims_another(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Standing("org-9/email#0", None)
    road = Road(
        monkeypatch, (CheckRow, None), GRANTED, (WriteRow, other), (EndCall, ENDED),
        (ClaimCall, Granted(leases=(lease(7002),))), (WriteRow, None),
    )  # fmt: skip
    monkeypatch.setattr("allocator.operations.record._has_ended", _never)
    monkeypatch.setattr("allocator.operations.record.renew", _renewed)
    assert road.drive(make_context(), replace(REQUEST, record=True)) == (lease(7002),)


def _never(*_: object) -> Any:
    yield from ()
    return False


def _renewed(_: object, leases: tuple[Lease, ...]) -> Any:
    yield from ()
    return [RenewOutcome(one) for one in leases]


def first(**changes: Any) -> Attempt:
    return replace(first_attempt(make_context(), REQUEST), **changes)


def test_an_attempt_ends_after_too_many_refusals_and_at_once_for_an_explicit_port() -> None:
    error, attempt = PortRefusedError("refused"), first()
    for _ in range(5):
        attempt = attempt.after_refusal(error)
    with pytest.raises(PortRefusedError):
        attempt.after_refusal(error)
    with pytest.raises(PortRefusedError):
        first(request=replace(REQUEST, port=7001)).after_refusal(error)


def test_an_attempt_takes_the_token_of_the_worker_s_own_lease_and_gives_nothing_back_then() -> None:
    attempt = first().after_own(lease(), "c" * 32, HeldError("held"))
    assert attempt.tokens == ("c" * 32,)
    assert not attempt.is_new


def test_an_attempt_over_the_dead_is_made_once_for_each_lease() -> None:
    attempt = first().after_death(lease(fence=9), HeldError("held"))
    assert attempt.superseded == 9
    with pytest.raises(HeldError):
        attempt.after_death(lease(fence=9), HeldError("held"))
    assert attempt.after_death(lease(fence=10), HeldError("held")).superseded == 10


def test_an_attempt_waits_only_for_what_may_change() -> None:
    attempt = first(deadline=10.0)
    later: AllocatorError
    for later in (ExhaustedError("full"), HeldError("held", retry_after=3.0)):
        assert attempt.may_wait_after(later, 9.0)
        assert not attempt.may_wait_after(later, 10.0)
    for never in (CordonedError("cordoned"), HeldError("reserved"), InvalidInputError("outside")):
        assert not attempt.may_wait_after(never, 9.0)
