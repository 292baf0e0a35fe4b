"""A store that writes down each call of an actor, before it is sent and when its outcome is known; no more."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from allocator import AllocatorError
from allocator.model.errors import StoreUnavailableError
from allocator.protocol.replies import NoPool
from allocator.protocol.signatures.claim import ClaimCall, Granted, Same
from allocator.protocol.signatures.end import Already, EndCall, Ended
from allocator.protocol.signatures.queue import JoinCall, LeaveCall
from allocator.protocol.signatures.renew import ExtendCall, Lost, Outcome, Reasserted, RenewCall
from allocator.store.blocking import Store
from torture.history import OK, REFUSED, UNKNOWN

if TYPE_CHECKING:
    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.wire import Call, ScriptCall
    from torture.history import Book

OK_CODES = {"granted", "same", "renewed", "reasserted", "released", "declined", "queued", "left"}


class RecordingStore(Store):
    """The product's store; `book` has to be set before it is used."""

    book: Book

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sent = threading.local()

    def _evaluate(self, step: ScriptCall) -> Any:
        self._sent.times = getattr(self._sent, "times", 0) + 1
        return super()._evaluate(step)

    def call(self, step: ScriptCall) -> Any:
        call = step.signature
        op = op_of(call)
        if call is None or op is None:
            return super().call(step)
        number = self.book.begin(op, items=ASKED[type(call)](call))
        self._sent.times = 0
        try:
            reply = super().call(step)
        except AllocatorError as error:
            # What was sent more than once may have been carried out before it was refused.
            unknown = isinstance(error, StoreUnavailableError) or self._sent.times > 1
            self.book.end(
                number, UNKNOWN if unknown else REFUSED, attempts=self._sent.times, fields={"error": str(error)}
            )
            raise
        answers = ANSWERED[type(call)](call, decoded(call, reply))
        fine = {answer["code"] for answer in answers} & OK_CODES
        self.book.end(number, OK if fine else REFUSED, attempts=self._sent.times, answers=answers)
        return reply

    def await_turn(self, step: AwaitTurn) -> bool:
        ticket = step.turn.rpartition(":")[2]
        number = self.book.begin("present", items=[{"ticket": ticket, "condition": step.content.split()[1]}])
        try:
            reported = super().await_turn(step)
        except AllocatorError as error:
            self.book.end(number, UNKNOWN, fields={"error": str(error)})
            raise
        self.book.end(number, OK, answers=[{"reported": reported}])
        return reported


def decoded(call: Call[Any], reply: Any) -> Any:
    """Return what a script answered; a claim's deadlines count from 0, so that they are what is left."""
    return call.decode(reply, sent_at=0.0) if isinstance(call, ClaimCall) else call.decode(reply)


def op_of(call: Call[Any] | None) -> str | None:
    """Return what the history names a call, or None for one that it leaves out."""
    if isinstance(call, EndCall):
        return {"released": "release", "declined": "decline"}[call.how]
    return OPS.get(type(call))


def _claim_asked(call: ClaimCall) -> list[dict[str, Any]]:
    shared = {"ttl_ms": call.ttl_ms, "explicit": call.port, "supersede": call.superseded, "ticket": call.ticket}
    return [{"worker": one.worker, "token": one.token} | shared for one in call.wanted]


def _claim_answered(call: ClaimCall, reply: object) -> list[dict[str, Any]]:
    code = code_of(reply)
    if not isinstance(reply, Granted | Same):
        return [{"code": code}] * len(call.wanted)
    return [
        {"code": code, "port": one.port, "fence": one.fence, "remaining_ms": (one.deadline or 0) * 1_000}
        for one in reply.leases
    ]


def code_of(reply: object) -> str:
    """Return what the history names a reply: its class, in small letters."""
    return type(reply).__name__.lower()


def _renew_asked(call: RenewCall) -> list[dict[str, Any]]:
    return [
        {"port": one.port, "token": one.token, "fence": one.fence, "ttl_ms": one.ttl_ms, "worker": one.worker}
        for one in call.leases
    ]


def _renew_answered(call: RenewCall, reply: Any) -> list[dict[str, Any]]:
    if isinstance(reply, NoPool):
        return [{"code": "no_pool"}] * len(call.leases)
    return [_renewal(one) for one in reply.outcomes]


def _renewal(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Lost):
        return {"code": "lost", "why": str(outcome.holder) if outcome.holder else outcome.why}
    code = "reasserted" if isinstance(outcome, Reasserted) else "renewed"
    return {"code": code} | ({"fence": outcome.fence} if outcome.fence is not None else {})


def _extend_asked(call: ExtendCall) -> list[dict[str, Any]]:
    return [{"port": one.port, "token": one.token, "fence": one.fence, "ttl_ms": call.ttl_ms} for one in call.leases]


def _keep_answered(call: ExtendCall, reply: Any) -> list[dict[str, Any]]:
    if isinstance(reply, NoPool):
        return [{"code": "no_pool"}] * len(call.leases)
    return [{"code": "left" if at in reply.left else "renewed"} for at in range(len(call.leases))]


def _end_asked(call: EndCall) -> list[dict[str, Any]]:
    return [{"port": one.port, "token": one.token} for one in call.leases]


def _end_answered(call: EndCall, reply: Any) -> list[dict[str, Any]]:
    return [
        {"code": call.how if isinstance(one, Ended) else "already" if isinstance(one, Already) else "not_yours"}
        for one in reply
    ]


OPS: dict[Any, str] = {ClaimCall: "claim", RenewCall: "renew", ExtendCall: "keep", JoinCall: "wait", LeaveCall: "wait"}
ASKED: dict[Any, Any] = {
    ClaimCall: _claim_asked,
    RenewCall: _renew_asked,
    ExtendCall: _extend_asked,
    EndCall: _end_asked,
    JoinCall: lambda call: [{"ticket": call.ticket, "mode": "join", "condition": call.condition}],
    LeaveCall: lambda call: [{"ticket": call.ticket, "mode": "leave", "condition": ""}],
}
ANSWERED: dict[Any, Any] = {
    ClaimCall: _claim_answered,
    RenewCall: _renew_answered,
    ExtendCall: _keep_answered,
    EndCall: _end_answered,
    JoinCall: lambda _, reply: [{"code": "no_pool" if isinstance(reply, NoPool) else "queued"}],
    LeaveCall: lambda *_: [{"code": "left"}],
}
