"""What a history says for certain: who held which port by which answer, and who ended what; the rules share it."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torture.excuses import Excuses
from torture.history import OK, UNKNOWN

if TYPE_CHECKING:
    from torture.history import Call, History

HOLDING_CODES = frozenset({"granted", "same", "renewed", "reasserted"})
EVENTFUL = frozenset({"claim", "release", "decline"})
ENDED_CODES = frozenset({"released", "declined"})


@dataclass(slots=True)
class Confirmation:
    """An answer of Redis that a token holds a port.

    Attributes:
        began: When it was asked for; Redis decided between then and `ended`.
        deadline: Until when the holder may be sure by this answer.
        until: The same, or sooner, when the holder began to give the lease back.
    """

    actor: str
    token: str = field(repr=False)
    worker: str
    port: int
    fence: int
    began: float
    ended: float
    deadline: float
    until: float
    code: str

    @property
    def grants(self) -> bool:
        """Whether it gave a new fence."""
        return self.code in {"granted", "reasserted"}


@dataclass(slots=True)
class Ending:
    """A release or decline by a token: sent, and perhaps confirmed (`code`).

    Attributes:
        over: When it can take effect no more, again or for the first time: one that was not answered, or was sent more
            than once, may still be on its way.
    """

    actor: str
    op: str
    token: str = field(repr=False)
    port: int
    began: float
    ended: float
    over: float
    code: str


@dataclass(slots=True)
class Facts:
    """Confirmations, endings and losses, by port and by token, each in the order of time."""

    history: History
    excuses: Excuses
    by_port: dict[int, list[Confirmation]] = field(default_factory=lambda: defaultdict(list))
    by_token: dict[str, list[Confirmation]] = field(default_factory=lambda: defaultdict(list))
    endings: dict[str, list[Ending]] = field(default_factory=lambda: defaultdict(list))
    claims: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    renewals: dict[str, list[tuple[Call, dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    superseded: dict[int, float] = field(default_factory=dict)
    notified: list[float] = field(default_factory=list)
    workers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History) -> Facts:
        facts = cls(history, Excuses.of(history))
        facts.notified = sorted(call.ended for call in history.calls if call.outcome == OK and call.op in EVENTFUL)
        for call in history.calls:
            for item in call.items:
                facts._enter(call, item)
        for confirmations in facts.by_token.values():
            for one in confirmations:
                facts._cut(one)
        for confirmations in facts.by_port.values():
            confirmations.sort(key=lambda one: one.ended)
        return facts

    def _enter(self, call: Call, item: dict[str, Any]) -> None:
        code = item.get("code", "")
        if call.op in {"release", "decline"}:
            sent_once = call.attempts == 1 and not self.excuses.repeated(call.began, call.ended)
            over = call.ended if sent_once and call.outcome != UNKNOWN else self.excuses.arrives(call.ended)
            ending = Ending(call.actor, call.op, item["token"], int(item["port"]), call.began, call.ended, over, code)
            self.endings[item["token"]].append(ending)
        elif call.op in {"renew", "keep"}:
            self.renewals[item["token"]].append((call, item))
        elif call.op == "claim":
            self.claims[item["token"]].append(call)
            if fence := int(item.get("supersede") or 0):
                self.superseded[fence] = min(call.began, self.superseded.get(fence, call.began))
        if worker := item.get("worker"):
            self.workers[item["token"]] = worker
        if call.op in {"claim", "renew", "keep"} and code in HOLDING_CODES:
            deadline = call.began + item.get("remaining_ms", item["ttl_ms"]) / 1_000
            one = Confirmation(
                actor=call.actor,
                token=item["token"],
                worker=self.workers.get(item["token"], ""),
                port=int(item["port"]),
                fence=int(item["fence"]),
                began=call.began,
                ended=call.ended,
                deadline=deadline,
                until=deadline,
                code=code,
            )
            self.by_port[one.port].append(one)
            self.by_token[one.token].append(one)

    def _cut(self, one: Confirmation) -> None:
        for ending in self.endings.get(one.token, ()):
            if ending.over > one.began:
                one.until = min(one.until, ending.began)
        one.until = min(one.until, self.superseded.get(one.fence, one.until))
        one.until = min(one.until, self._left_behind_at(one, one.until) or one.until)

    def _left_behind_at(self, one: Confirmation, before: float) -> float | None:
        death = self.history.deaths.get(one.actor)
        return None if death is None else self.excuses.left_behind_at(death[0], before)

    def was_given_back(self, one: Confirmation, before: float) -> bool:
        """Return whether the holder, or the worker's next process, had begun to end a lease before a time."""
        if self.superseded.get(one.fence, before + 1) <= before or self._left_behind_at(one, before):
            return True
        return any(ending.began <= before and ending.over >= one.began for ending in self.endings.get(one.token, ()))

    def surely_leased(self, call: Call) -> int:
        """Return how many ports were leased all the time in which a call was decided, whatever was lost meanwhile."""
        return sum(
            any(
                one.ended <= call.began and one.until >= call.ended and not self._may_be_lost(one, call)
                for one in known
            )
            for known in self.by_port.values()
        )

    def _may_be_lost(self, one: Confirmation, call: Call) -> bool:
        losses = [(it.began if it.loses_since is None else it.loses_since, it.ended) for it in self.excuses.losses]
        jumps = [(it.began, it.ended) for it in self.excuses.jumps if it.jump_s > 0]
        return any(since <= call.ended and until >= one.began for since, until in (*losses, *jumps))

    def came_back(self, newer: Confirmation, older: Confirmation) -> bool:
        """Return whether a lease may have been lost and then re-asserted over one that it had followed or met.

        Two servers that were both in charge may have granted one port; the newer of the grants stays once its holder
        has renewed it, a TTL after the loss at most. Until then the older one is confirmed as well.
        """
        return newer.token != older.token and any(
            one.grants
            and one.fence > older.fence
            and one.began <= loss.ended
            and one.ended >= (loss.loses_since or 0.0)
            and older.began <= loss.ended + self.history.ttl_s
            for one in self.by_token.get(newer.token, ())
            if one.port == older.port and one is not newer
            for loss in self.excuses.losses
        )

    def events_between(self, since: float, until: float) -> int:
        """Return how many calls that make an event took effect between two times, at least."""
        return bisect(self.notified, until) - bisect(self.notified, since)

    def grants(self) -> list[Confirmation]:
        """Return what gave new fences."""
        return [one for confirmations in self.by_port.values() for one in confirmations if one.grants]

    def may_have_been_granted_again(self, token: str) -> bool:
        """Return whether a claim by this token may have been carried out once more, after what came of the first."""
        return any(
            call.attempts > 1 or call.outcome == UNKNOWN or self.excuses.repeated(call.began, call.ended)
            for call in self.claims.get(token, ())
        )

    def confirmed_last(self, token: str, before: float) -> Confirmation | None:
        """Return the last confirmation of a token that was there before a time."""
        return max(
            (one for one in self.by_token.get(token, ()) if one.ended <= before),
            key=lambda one: one.until,
            default=None,
        )
