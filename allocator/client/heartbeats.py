"""When held leases are renewed: the plan that the heartbeat thread and the heartbeat task both follow.

The rules: renewal starts at T1 (0.5 TTL, give or take 0.05, so that holders spread out), and all leases of a process go
along in one call. A failed renewal is tried again until it succeeds, more often from T2 (0.875 TTL) on; a lease whose
deadline passed unconfirmed is doubtful, not lost: with `keep` its holder goes on and re-asserts it, with `stop` it is
notified that it lost it. Only an answer of Redis that reports it makes a lease lost under `keep`.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypedDict, TypeVar, Unpack

from allocator.client.counts import HolderCounts, with_held
from allocator.model.backoff import Backoff
from allocator.model.durations import format_duration
from allocator.model.errors import AllocatorError, InvalidInputError, LeaseLostError
from allocator.model.leases import NUMBER_FIELDS, TEXT_FIELDS, error_line
from allocator.model.log import log
from allocator.model.names import check_labels
from allocator.model.states import LIVE_STATES, TRANSITIONS, LeaseState
from allocator.model.values import replace
from allocator.operations import renew
from allocator.operations.renew import of_the_parent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from allocator.client.session import Session
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.operations.renew import RenewOutcome
    from allocator.operations.steps import Operation

T1 = 0.5
T1_SPREAD = 0.1
"""Holders that started together renew at 0.45-0.55 TTL, not all at once; `lib/recovery.lua` counts on no later."""
T2 = 0.875
"""From this part of the TTL until its end a renewal is urgent."""
RETRY = Backoff(first=0.02, longest=0.05, least=0.25)
"""A renewal that failed is tried again after this part of the TTL: doubling, or the first again when urgent."""

_KINDS: dict[str, type] = dict.fromkeys(NUMBER_FIELDS, int) | dict.fromkeys(TEXT_FIELDS, str)


class Signal(Protocol):
    """An event that can be set: `threading.Event` or `asyncio.Event`."""

    def set(self) -> object:
        """Set it."""
        ...

    def is_set(self) -> bool:
        """Return whether it was set."""
        ...


E_ = TypeVar("E_", bound=Signal)


class HolderFields(TypedDict, total=False):
    """What a holder may report of itself in its lease; see `Lease`."""

    pid: int | None
    pid_started: int | None
    holder_pid: int | None
    holder_started: int | None
    boot: str | None
    namespaces: str | None
    restarts: int
    started_at: int | None
    last_error: str | None
    labels: Mapping[str, str]


class HeldLease(Generic[E_]):
    """A lease that is kept alive by heartbeats until it is released.

    Attributes:
        lease: The lease as last confirmed; a new value after each renewal.
        draining: An event that is set when the host is to be emptied: stop the worker and release the lease.
        lost: An event that is set when the lease is lost; `error` then names who has it.
        error: Why it is lost, or None.
        doubtful: Whether its deadline passed without Redis confirming it.
    """

    def __init__(self, lease: Lease, lost: E_, draining: E_) -> None:
        self.lease = lease
        self.lost = lost
        self.draining = draining
        self.error: LeaseLostError | None = None
        self.doubtful = False
        self._rewrite = False

    def __repr__(self) -> str:
        condition = "lost" if self.lost.is_set() else "doubtful" if self.doubtful else str(self.lease.state)
        return f"<HeldLease {self.lease.worker} on {self.lease.address}, {condition}, fence {self.lease.fence}>"

    @property
    def host(self) -> str:
        """The host whose port it is."""
        return self.lease.host

    @property
    def port(self) -> int:
        """The leased port; it never changes while the lease is held."""
        return self.lease.port

    @property
    def worker(self) -> WorkerId:
        """Who holds it."""
        return self.lease.worker

    @property
    def fence(self) -> int:
        """The fencing token; it grows when the lease had to be re-asserted."""
        return self.lease.fence

    def set(self, *, state: LeaseState | None = None, **fields: Unpack[HolderFields]) -> None:
        """Change what the lease shows of its worker; the next heartbeat, which is due at once, writes it.

        Args:
            state: Where it is in its life; a live state, for a lease is ended by releasing or declining it.
            **words: See `HolderFields`.

        Raises:
            ValueError: When the state is an ended one, or cannot follow the present one.
            InvalidInputError: When a field is of another type, or labels are not valid.
        """
        if state is not None and state not in LIVE_STATES:
            raise ValueError(f"a lease that is held cannot be {state}; release or decline it")
        for name, value in fields.items():
            wanted = _KINDS.get(name)
            if wanted and value is not None and type(value) is not wanted:
                raise InvalidInputError(
                    f"{name} of a lease cannot be {value!r}; give a value of type {wanted.__name__}"
                )
        if "labels" in fields:
            fields["labels"] = check_labels(dict(fields["labels"]))
        if fields.get("last_error"):
            fields["last_error"] = error_line(fields["last_error"] or "")
        if state is not None and state != self.lease.state:
            if state not in TRANSITIONS[self.lease.state]:
                raise ValueError(f"a lease cannot go from {self.lease.state} to {state}")
            self.lease = replace(self.lease, state=state)
            self._rewrite = True
        changed = replace(self.lease, **fields)
        if changed != self.lease:
            self.lease = changed
            self._rewrite = True

    def stay_with_parent(self, lost: E_) -> None:
        """Become a copy in a forked child: `lost` is set, and no method changes the lease.

        Args:
            lost: A new event; the one before may have been in use by a thread that the child does not have.
        """
        self.error = of_the_parent(self.lease)
        self.lost = lost
        self.lost.set()

    @property
    def rewrite(self) -> bool:
        """Whether something was set that Redis does not have yet."""
        return self._rewrite


class HeartbeatPlan(Generic[E_]):
    """Which leases to renew, when, and what to make of the answer.

    Args:
        session: Who holds them.
        lock: Held while the plan is read or changed; `beat` takes it itself, for the other methods its caller does.
    """

    def __init__(self, session: Session, lock: AbstractContextManager[Any] | None = None) -> None:
        self._session = session
        self._lock = lock or contextlib.nullcontext()
        self._held: dict[str, HeldLease[E_]] = {}
        self._due_at: float | None = None
        self._failures = 0
        self._counts = defaultdict(HolderCounts, {session.pool: HolderCounts()})

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What was counted until now, by pool, with what is held at this moment."""
        return with_held(self._counts, [(one.lease.pool, one.doubtful) for one in self.held])

    def add(self, held: HeldLease[E_]) -> None:
        """Renew this lease from now on."""
        self._held[_token(held.lease)] = held
        self._plan_next()

    def remove(self, held: HeldLease[E_]) -> None:
        """Forget this lease."""
        self._held.pop(_token(held.lease), None)
        self._plan_next()

    def touch(self) -> None:
        """Renew at once: something was set."""
        self._due_at = self._session.clock()

    @property
    def held(self) -> list[HeldLease[E_]]:
        """The leases that are kept alive."""
        return list(self._held.values())

    def seconds_to_wait(self) -> float | None:
        """Return the seconds until something is due; None when no lease is held."""
        if self._due_at is None:
            return None
        return max(0.0, self._due_at - self._session.clock())

    def _plan_next(self, held: list[HeldLease[E_]] | None = None) -> None:
        self._failures = 0
        due = self.held if held is None else held
        spread = self._session.rng.uniform(T1 - T1_SPREAD / 2, T1 + T1_SPREAD / 2)
        self._due_at = min(
            ((one.lease.deadline or 0.0) - one.lease.ttl_ms / 1_000 * (1 - spread) for one in due),
            default=None,
        )

    def beat(self) -> Operation[None]:
        """Renew all held leases in one call for each pool, and let the reaper visit a pool that asks for it."""
        from allocator.operations import listing

        with self._lock:
            batch = self.held
            sent = [held.lease for held in batch]
            rewrite = any(held.rewrite for held in batch)
        with self._session.span("renew", *sent) as span:
            outcomes = span.renewed((yield from renew.renew_each(self._session.context, sent, rewrite=rewrite)))
        for pool in {outcome.lease.pool for outcome in outcomes if outcome.reap_due}:
            with contextlib.suppress(AllocatorError):
                yield from listing.reap(pool)
        with self._lock:
            self.apply_outcomes(batch, sent, outcomes)

    def apply_outcomes(self, batch: list[HeldLease[E_]], sent: list[Lease], outcomes: list[RenewOutcome]) -> None:
        """Apply the outcomes of a renewal to the leases of `batch` that are still held.

        Args:
            batch: The leases that were renewed.
            sent: Their copies as they were sent.
            outcomes: What Redis answered for each.
        """
        still = {id(held) for held in self._held.values()}
        failed: list[HeldLease[E_]] = []
        for held, before, outcome in zip(batch, sent, outcomes, strict=True):
            if id(held) not in still:
                continue
            if outcome.lost:
                self._lose(held, outcome.lost)
                continue
            self._counts[held.lease.pool].renewals[outcome.code] += 1
            if outcome.failed:
                self._doubt(held, outcome.failed)
                failed.append(held)
                continue
            if outcome.reasserted:
                log.warning(
                    "re-asserted the lease of %s on %s", held.worker, held.lease.address, extra=about(outcome.lease)
                )
            after = outcome.lease
            held.doubtful = False
            if outcome.draining and not held.draining.is_set():
                held.lease = replace(held.lease, state=LeaseState.DRAINING)
                held.draining.set()
                log.warning("host %s is draining: %s is to stop", held.host, held.worker, extra=about(held.lease))
            copied = _holder_copy(held.lease)
            held._rewrite = copied != _holder_copy(before)  # noqa: SLF001  # the plan and its leases are one unit
            held.lease = replace(after, **copied)
        well = [held for held in self._held.values() if held not in failed]
        if failed:
            self._failures += 1
            self._retry(failed, well)
        else:
            self._plan_next()
        if any(held.rewrite for held in well):
            self.touch()

    def fail(self, error: Exception) -> None:
        """Apply that a renewal got no answer: mark overdue leases as doubtful or lost, and plan the next try."""
        if not isinstance(error, AllocatorError):
            log.error("a heartbeat failed; it is tried again", exc_info=error)
        self._failures += 1
        for held in self.held:
            self._counts[held.lease.pool].renewals["unanswered"] += 1
            self._doubt(held, error)
        self._retry(self.held, [])

    def _doubt(self, held: HeldLease[E_], error: Exception) -> None:
        """Decide about a lease that was not renewed: once its time has passed it is doubtful, or lost."""
        overdue = self._session.clock() - (held.lease.deadline or self._session.clock())
        if overdue < 0:
            return
        self._counts[held.lease.pool].doubts += not held.doubtful
        where = f"the lease of {held.worker} on {held.lease.address}"
        if self._session.stops_in_doubt(held.lease.pool):
            self._lose(
                held,
                LeaseLostError(
                    f"{_doubt(where, overdue)}; stop this worker and claim again",
                    host=held.host,
                    port=held.port,
                    worker=str(held.worker),
                ),
            )
        elif not held.doubtful:
            held.doubtful = True
            doubt = _doubt(where, overdue)
            log.warning("%s; keeping its port and trying on (%s)", doubt, error, extra=about(held.lease))

    def _retry(self, failed: list[HeldLease[E_]], well: list[HeldLease[E_]]) -> None:
        """Plan the next renewal when some failed: soon, and no later than the others are due."""
        failed = [held for held in failed if _token(held.lease) in self._held]
        if not failed and not well:
            self._due_at = None
            return
        failures = self._failures
        self._plan_next(well)
        self._failures = failures
        if not failed:
            return
        now = self._session.clock()
        times = [(held.lease.ttl_ms / 1_000, (held.lease.deadline or now) - now) for held in failed]
        is_urgent = any(0 < left_s <= ttl_s * (1 - T2) for ttl_s, left_s in times)
        part = RETRY.pause(1 if is_urgent else failures, self._session.rng)
        again_at = now + part * min(ttl_s for ttl_s, _ in times)
        self._due_at = again_at if self._due_at is None else min(self._due_at, again_at)

    def _lose(self, held: HeldLease[E_], error: LeaseLostError) -> None:
        self._held.pop(_token(held.lease), None)
        held.error = error
        held.doubtful = False
        self._counts[held.lease.pool].renewals["lost"] += 1
        log.error("%s", error, extra=about(held.lease))
        held.lost.set()


def about(lease: Lease) -> dict[str, Lease]:
    """Return the `extra` of a log record that is about a lease."""
    return {"lease": lease}


def _holder_copy(lease: Lease) -> dict[str, Any]:
    return lease.holder_fields() | {"state": lease.state}


def _token(lease: Lease) -> str:
    return f"{lease.pool} {lease.token}"


def _doubt(where: str, overdue_s: float) -> str:
    """Return the text for a lease whose deadline passed unconfirmed."""
    return f"{where} could not be renewed and its time passed {format_duration(overdue_s * 1_000)} ago"
