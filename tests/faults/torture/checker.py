"""The rules. Each is a function over the facts of a history that yields what breaks it, with the evidence.

A rule speaks only of what is certain: a lease is held from the answer that confirmed it until the holder's own deadline
or until the holder began to give it back; a call took effect somewhere between its begin and its end, or, when nobody
saw its end, perhaps never. What two calls did is in order only where they do not overlap.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from torture import queue_order
from torture.facts import ENDED_CODES, Confirmation, Ending, Facts
from torture.history import UNKNOWN
from torture.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torture.history import History

TIE_S = 0.000_001
CLOCK_STEP_S = 0.001
"""The server's clock as the scripts read it, in whole milliseconds: a grace may be that much shorter."""
SNAPSHOT_SLACK_MS = 250.0
MANY_EVENTS = 400
"""When a history shows so many events there may have been a thousand: it shows no expiries, no changes of state."""


def holdings_never_overlap(facts: Facts) -> Iterator[Violation]:
    """(a) Two tokens never surely hold one port at once."""
    for port, confirmations in facts.by_port.items():
        for first, second in _overlaps(facts, confirmations):
            yield Violation("a: holdings overlap", f"two tokens surely held port {port} at once", (first, second))


def workers_never_run_twice(facts: Facts) -> Iterator[Violation]:
    """(a) Two tokens never surely hold leases of one worker at once."""
    by_worker: dict[str, list[Confirmation]] = defaultdict(list)
    for confirmations in facts.by_port.values():
        for one in confirmations:
            by_worker[one.worker].append(one)
    for worker, confirmations in by_worker.items():
        confirmations.sort(key=lambda one: one.ended)
        for first, second in _overlaps(facts, confirmations):
            yield Violation("a: worker twice", f"{worker} surely had two leases at once", (first, second))


def _overlaps(facts: Facts, confirmations: Iterable[Confirmation]) -> Iterator[tuple[Confirmation, Confirmation]]:
    running: list[Confirmation] = []
    for one in confirmations:
        running = [other for other in running if other.until > one.ended + TIE_S]
        for other in running:
            if other.token == one.token or one.until <= one.ended:
                continue
            first, second = sorted((other, one), key=lambda each: each.began)
            excused = _excused(facts, first, second)
            if not excused and second.began <= first.ended:  # nobody knows which of the two was first
                excused = _excused(facts, second, first)
            if not excused:
                yield first, second
        running.append(one)


def _excused(facts: Facts, first: Confirmation, second: Confirmation) -> bool:
    """Return whether Redis may have had no more of the first confirmation when it gave the second."""
    lost = facts.excuses.may_be_lost(first.began, first.ended, second.ended)
    return lost or facts.excuses.ends_early(first.began, second.ended) or facts.came_back(second, first)


def ports_rest_for_their_grace(facts: Facts) -> Iterator[Violation]:
    """(a) A port whose lease ran out is not granted to another before the grace has passed too."""
    grace_s = facts.history.grace_s
    for port, confirmations in facts.by_port.items():
        for at, one in enumerate(confirmations):
            for other in confirmations[at + 1 :]:
                if other.ended >= one.deadline + grace_s - CLOCK_STEP_S:
                    break
                if other.token == one.token or other.code != "granted" or other.began < one.ended:
                    continue
                excused = (
                    facts.was_given_back(one, other.ended)
                    or facts.excuses.may_be_lost(one.began, one.ended, other.ended)
                    or facts.excuses.went_ahead_s(one.began, other.ended)
                )
                if not excused:
                    yield Violation("a: no grace", f"port {port} was granted before its grace was over", (one, other))


def listened_ports_are_not_granted(facts: Facts) -> Iterator[Violation]:
    """(a) Whatever Redis forgot: no claim succeeds on a port that another process listens on all the while."""
    on_port: dict[int, list[Any]] = defaultdict(list)
    for one in facts.history.listenings:
        on_port[one.port].append(one)
    for leased in facts.history.leased:
        grants = (one for one in facts.by_token.get(leased["token"], ()) if one.code == "granted")
        grant = next((one for one in grants if one.fence == leased["fence"]), None)
        if grant is None:
            continue
        for one in on_port[grant.port]:
            if one.since < grant.ended and one.until > leased["at"]:
                what = f"port {grant.port} was granted and proven while {one.actor} listened on it"
                yield Violation("a: listener", what, (grant, leased, one))


def fences_grow(facts: Facts) -> Iterator[Violation]:
    """(b) A grant after another has a higher fence, in the whole pool and so on each port; no two have the same."""
    by_end = sorted(facts.grants(), key=lambda one: one.ended)
    by_begin = sorted(by_end, key=lambda one: one.began)
    highest: Confirmation | None = None
    at = 0
    for one in by_begin:
        while at < len(by_end) and by_end[at].ended < one.began:
            if highest is None or by_end[at].fence > highest.fence:
                highest = by_end[at]
            at += 1
        if highest and highest.fence >= one.fence and not facts.excuses.fence_may_shrink(highest.began, one.ended):
            yield Violation("b: fence", f"fence {one.fence} came after fence {highest.fence}", (highest, one))
    seen: dict[int, Confirmation] = {}
    for one in by_end:
        other = seen.setdefault(one.fence, one)
        if other.token != one.token and not facts.excuses.fence_may_shrink(other.began, one.ended):
            yield Violation("b: fence twice", f"fence {one.fence} was given twice", (other, one))


def ended_tokens_change_nothing(facts: Facts) -> Iterator[Violation]:
    """(c) A token whose release or decline was confirmed never takes effect again.

    Once the port's newest grant was declined, only the last 1,000 events still tell that an older one had ended.
    """
    for token, endings in facts.endings.items():
        if facts.may_have_been_granted_again(token):
            continue
        for first in endings:
            if first.code not in ENDED_CODES:
                continue
            for effect in _effects(facts, token):
                if effect.began <= first.ended or effect.port != first.port:
                    continue
                if any(first.began < call.began < effect.ended for call in facts.claims.get(token, ())):
                    break  # a claim in line goes on with its token after it had to decline a port
                above = _fence_of(facts, token, effect.began)
                newest = _newest_grant(facts, token, effect, above)
                if (
                    _was_declined(facts, newest, above, effect)
                    and facts.events_between(first.ended, effect.began) >= MANY_EVENTS
                ):
                    break  # it is live again
                if not facts.excuses.may_be_lost(first.began, first.ended, effect.ended):
                    yield Violation("c: ended token", "a token that had ended took effect again", (first, effect))


def stale_tokens_change_nothing(facts: Facts) -> Iterator[Violation]:
    """(c) A token does nothing more once a newer grant has its port, unless that one was declined.

    A declined one does not count (docs/explanation/guarantees.md, "Losing data"): the kernel refused the port because
    this holder has it. A renewal that nobody saw the end of may have re-asserted the token meanwhile.
    """
    for token, confirmations in facts.by_token.items():
        for effect in _effects(facts, token):
            known = [one for one in confirmations if one.ended <= effect.began]
            if not known:
                continue
            since = _confirmed_until(facts, token, effect.began)
            above = max(one.fence for one in known)
            newest = _newest_grant(facts, token, effect, above)
            if newest is None or newest.began <= since or newest.ended >= effect.began:
                continue
            declined = _was_declined(facts, newest, above, effect)
            if not declined and not facts.excuses.may_be_lost(newest.began, newest.ended, effect.ended):
                yield Violation(
                    "c: stale token", "a token took effect after a newer grant", (known[-1], newest, effect)
                )


def _newest_grant(facts: Facts, token: str, effect: Confirmation | Ending, above: int) -> Confirmation | None:
    """Return the newest grant of a port to another token that may have been there before an effect."""
    return max(
        (
            one
            for one in facts.by_port[effect.port]
            if one.token != token and one.fence > above and one.began < effect.ended
        ),
        key=lambda one: one.fence,
        default=None,
    )


def _fence_of(facts: Facts, token: str, before: float) -> int:
    return max((one.fence for one in facts.by_token.get(token, ()) if one.ended <= before), default=0)


def _was_declined(facts: Facts, newest: Confirmation | None, above: int, effect: Confirmation | Ending) -> bool:
    """Return whether a port's newest grant may have been declined before a renewal: it may re-assert an older one then.

    Also a grant of a command, which keeps no book: the pool's events tell of it.
    """
    if not isinstance(effect, Confirmation):
        return False
    if newest is not None:
        above = newest.fence
        endings = facts.endings.get(newest.token, ())
        if any(ending.op == "decline" and ending.began <= effect.ended for ending in endings):
            return True
    return any(above < fence < effect.fence for fence in facts.history.declined.get(effect.port, ()))


def _effects(facts: Facts, token: str) -> Iterator[Confirmation | Ending]:
    for one in facts.by_token.get(token, ()):
        if one.code in {"renewed", "reasserted"}:
            yield one
    for ending in facts.endings.get(token, ()):
        if ending.code in ENDED_CODES:
            yield ending


def _confirmed_until(facts: Facts, token: str, before: float) -> float:
    """Return when the last renewal or claim of a token that may have taken effect had surely done so."""
    latest = 0.0
    for call, item in facts.renewals.get(token, ()):
        if call.began < before and (call.outcome == UNKNOWN or item.get("code") not in {"lost", "left"}):
            late = call.outcome == UNKNOWN or facts.excuses.repeated(call.began, call.ended)
            latest = max(latest, facts.excuses.arrives(call.ended) if late else call.ended)
    for call in facts.claims.get(token, ()):
        if facts.may_have_been_granted_again(token):
            latest = max(latest, facts.excuses.arrives(call.ended))
    return latest


def sure_holders_are_not_notified(facts: Facts) -> Iterator[Violation]:
    """(c) A renewal that was answered before the holder's deadline is not refused: nobody else took the lease."""
    for token, renewals in facts.renewals.items():
        for call, item in renewals:
            if item.get("code") != "lost":
                continue
            known = facts.confirmed_last(token, call.began)
            if known is None or known.until <= call.ended:
                continue
            lost = facts.excuses.may_be_lost(known.began, known.ended, call.ended)
            newer = (one for one in facts.by_port[known.port] if known.began < one.ended and one.began < call.ended)
            if any(facts.came_back(one, known) for one in newer):
                continue
            if not lost and not facts.excuses.ends_early(known.began, call.ended):
                yield Violation("c: taken away", "a sure holder was notified that its lease is lost", (known, call))


def leases_end_with_their_holders(facts: Facts) -> Iterator[Violation]:
    """(d) TTL after its holder's death no lease is left, and TTL + grace after it the port is claimable."""
    history = facts.history
    arrived = {actor: facts.excuses.arrives(after) for actor, (_, after) in history.deaths.items()}
    for snapshot in history.snapshots:
        for port, grant in snapshot["grants"].items():
            at = arrived.get(_actor_of(grant["worker"]))
            if at is None or grant["mark"]:
                continue
            ends = at + history.ttl_s + facts.excuses.went_back_s(at - history.ttl_s, snapshot["ended"])
            lease = snapshot["leases"].get(port)
            if lease and lease["worker"] == grant["worker"] and snapshot["began"] > ends:
                yield Violation("d: outlived", f"the lease on port {port} outlived its holder", (lease, at, snapshot))
            rests_ms = snapshot["scores"].get(port, 0.0) - snapshot["now_ms"]
            most_ms = (ends + history.grace_s - snapshot["began"]) * 1_000 + SNAPSHOT_SLACK_MS
            if rests_ms > max(most_ms, 0.0):
                yield Violation("d: kept", f"port {port} is kept after its holder's death", (grant, at, snapshot))


def _actor_of(worker: str) -> str:
    return worker.partition("/")[0]


def snapshots_agree(facts: Facts) -> Iterator[Violation]:
    """(f) At each moment a live lease is its port's open grant, and its port's time lies beyond its end and grace."""
    grace_ms = facts.history.grace_s * 1_000
    for snapshot in facts.history.snapshots:
        for port, lease in snapshot["leases"].items():
            grant, score = snapshot["grants"].get(port), snapshot["scores"].get(port, 0.0)
            if not grant or grant["mark"] or grant["fence"] != lease["fence"] or grant["worker"] != lease["worker"]:
                yield Violation("f: grant", f"the lease on port {port} is not its open grant", (lease, grant, snapshot))
            if score < snapshot["now_ms"] + lease["left_ms"] + grace_ms - SNAPSHOT_SLACK_MS:
                yield Violation("f: score", f"port {port} is claimable before its lease ends", (lease, score, snapshot))


def all_sides_agree(facts: Facts) -> Iterator[Violation]:
    """(f) When all is quiet Redis, SQL, the kernel and the holders agree; when all have left nothing is left."""
    for settled in facts.history.settled:
        for problem in settled["problems"]:
            yield Violation(f"f: {settled['when']}", problem, tuple(settled.get("evidence", ())))


def rows_follow_fences(facts: Facts) -> Iterator[Violation]:
    """(c) No row was overwritten by an older fence; the database itself watched."""
    for row in facts.history.rows:
        yield Violation("c: row", "a row was overwritten by an older fence", (row,))


def nothing_crashed(facts: Facts) -> Iterator[Violation]:
    """No process of ours ended with a traceback or in a way that nobody asked for."""
    for crash in facts.history.crashes:
        yield Violation("crash", str(crash.get("error")), (crash,))


RULES = (
    holdings_never_overlap,
    workers_never_run_twice,
    ports_rest_for_their_grace,
    listened_ports_are_not_granted,
    fences_grow,
    ended_tokens_change_nothing,
    stale_tokens_change_nothing,
    sure_holders_are_not_notified,
    leases_end_with_their_holders,
    queue_order.waits_are_served_in_order,
    snapshots_agree,
    all_sides_agree,
    rows_follow_fences,
    nothing_crashed,
)


def check(history: History) -> list[Violation]:
    """Return all that breaks a rule."""
    facts = Facts.of(history)
    return [violation for rule in RULES for violation in rule(facts)]
