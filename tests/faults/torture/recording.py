"""A store that writes down each call of an actor, before it is sent and when its outcome is known; no more."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from allocator import AllocatorError
from allocator.model.errors import StoreUnavailableError
from allocator.protocol import decode
from allocator.store.blocking import Store
from torture.history import OK, REFUSED, UNKNOWN

if TYPE_CHECKING:
    from allocator.operations.steps import AwaitTurn
    from allocator.protocol.calls import ScriptCall
    from torture.history import Book

WORDS_OF_RENEWAL = 8
OK_CODES = {
    "claim": {"granted", "same"},
    "renew": {"renewed", "reasserted"},
    "keep": {"renewed"},
    "release": {"released"},
    "decline": {"declined"},
    "wait": {"queued", "left"},
}


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
        if step.script not in ASKED:
            return super().call(step)
        number = self.book.begin(step.script, **ASKED[step.script](step.args))
        self._sent.times = 0
        try:
            reply = super().call(step)
        except AllocatorError as error:
            # What was sent more than once may have been carried out before it was refused.
            unknown = isinstance(error, StoreUnavailableError) or self._sent.times > 1
            self.book.end(
                number, UNKNOWN if unknown else REFUSED, attempts=self._sent.times, words={"error": str(error)}
            )
            raise
        answers = ANSWERED[step.script](step, reply)
        codes = {answer["code"] for answer in answers}
        self.book.end(
            number, OK if codes & OK_CODES[step.script] else REFUSED, attempts=self._sent.times, answers=answers
        )
        return reply

    def await_turn(self, step: AwaitTurn) -> bool:
        ticket = step.turn.rpartition(":")[2]
        number = self.book.begin("present", items=[{"ticket": ticket, "condition": step.said.split()[1]}])
        try:
            told = super().await_turn(step)
        except AllocatorError as error:
            self.book.end(number, UNKNOWN, words={"error": str(error)})
            raise
        self.book.end(number, OK, answers=[{"told": told}])
        return told


def _claim_asked(args: tuple[str | int, ...]) -> dict[str, Any]:
    _, worker, token, ttl_ms, _, _, *sometimes = args
    *_, explicit, supersede, ticket = *sometimes, *("", "", 0, 0, 0, "")[len(sometimes) :]
    item = {"worker": worker, "token": token, "ttl_ms": ttl_ms, "explicit": explicit}
    return {"items": [item | {"supersede": supersede, "ticket": ticket}]}


def _claim_answered(step: ScriptCall, reply: Any) -> list[dict[str, Any]]:
    words = decode.words(reply)
    code = decode.text(words[0])
    if code not in {"granted", "same"}:
        return [{"code": code}]
    lease = decode.lease("-", words[1], remaining_ms=0, now_ms=0)
    return [{"code": code, "port": lease.port, "fence": lease.fence, "remaining_ms": decode.number(words[2])}]


def _renew_asked(args: tuple[str | int, ...]) -> dict[str, Any]:
    return {
        "items": [
            dict(zip(("port", "token", "fence", "ttl_ms", "worker"), args[at : at + 5], strict=True))
            for at in range(2, len(args), WORDS_OF_RENEWAL)
        ]
    }


def _renew_answered(step: ScriptCall, reply: Any) -> list[dict[str, Any]]:
    words = decode.words(reply)
    count = (len(step.args) - 2) // WORDS_OF_RENEWAL
    if decode.text(words[0]) == "no_pool":
        return [{"code": "no_pool"}] * count
    answers = []
    for i in range(count):
        code, detail = decode.text(words[2 * i + 1]), decode.text(words[2 * i + 2])
        newer = {"fence": int(detail)} if code != "lost" and detail else {}
        answers.append({"code": code} | newer | ({"why": detail} if code == "lost" else {}))
    return answers


def _keep_asked(args: tuple[str | int, ...]) -> dict[str, Any]:
    said = str(args[2]).split()
    proofs = zip(said[::2], said[1::2], strict=True)
    return {
        "items": [
            {"port": port, "token": token, "fence": int(fence), "ttl_ms": args[1]}
            for port, (fence, token) in zip(args[3:], proofs, strict=True)
        ]
    }


def _keep_answered(step: ScriptCall, reply: Any) -> list[dict[str, Any]]:
    words = decode.words(reply)
    count = len(step.args) - 3
    if decode.text(words[0]) == "no_pool":
        return [{"code": "no_pool"}] * count
    left = {int(decode.number(word)) for word in words[3:]}
    return [{"code": "left" if at in left else "renewed"} for at in range(1, count + 1)]


def _end_asked(args: tuple[str | int, ...]) -> dict[str, Any]:
    return {"items": [{"port": args[at], "token": args[at + 1]} for at in range(0, len(args), 2)]}


def _end_answered(step: ScriptCall, reply: Any) -> list[dict[str, Any]]:
    words = decode.words(reply)
    return [{"code": decode.text(words[at])} for at in range(0, len(step.args), 2)]


def _wait_asked(args: tuple[str | int, ...]) -> dict[str, Any]:
    joins = args[1] == "join"
    return {"items": [{"ticket": args[0], "mode": args[1], "condition": args[7] if joins else ""}]}


def _wait_answered(step: ScriptCall, reply: Any) -> list[dict[str, Any]]:
    return [{"code": decode.text(decode.words(reply)[0])}]


ASKED = {
    "claim": _claim_asked,
    "renew": _renew_asked,
    "keep": _keep_asked,
    "release": _end_asked,
    "decline": _end_asked,
    "wait": _wait_asked,
}
ANSWERED = {
    "claim": _claim_answered,
    "renew": _renew_answered,
    "keep": _keep_answered,
    "release": _end_answered,
    "decline": _end_answered,
    "wait": _wait_answered,
}
