"""The health of a worker, as a small state machine without I/O: starting, ready, degraded, and when it is given up.

It gets the result of each check and returns what follows, and when the next check is due.
"""

from __future__ import annotations

from enum import Enum

from allocator.model.states import LeaseState
from allocator.model.values import Value

FIRST_CHECK_S = 0.1
"""The shortest time between two checks that found something wrong."""

FIRST_LOOK_S, SLOWEST_LOOK_S = 0.005, 0.04
"""How soon after its start it is seen whether a worker listens, and how often at most: it is ready within 50 ms of when
it does. A look asks the kernel only, in 0.03 ms."""

SLOW_START_S = 60.0
"""After this time without a listener, and where it answers and is not well, a worker is checked less often."""

SLOWEST_START_CHECK_S = 1.0
STEP = 1.5
FAILURES_TO_DEGRADE = 3
HEALTHY_S = 60.0
"""A worker that was ready for so long has started well: its failures before are forgiven."""


class Verdict(Enum):
    """What a check changes."""

    NOTHING = "nothing"
    READY = "ready"
    DEGRADED = "degraded"
    GIVE_UP = "give up"


class Health(Value, frozen=False):
    """The health of one start of a worker.

    Attributes:
        started_at: When it was started, by the caller's clock in seconds.
        interval_s: How often it is checked once it is ready.
        give_up_after_s: After how long without a good answer it is to be started again; None for never.
        start_timeout_s: After how long without a listener it is to be started again while it starts; None for never.
        state: Where it is.
        ready_at: When it was ready first, or None.
        next_at: When the next check is due.
        why: What was wrong last.
        shared: Who else listens on its port, as text: with it a good answer may be another program's. Empty: nobody.
        slowest_look_s: How often it is looked at while it starts; less often by who looks after many.
    """

    started_at: float
    interval_s: float
    give_up_after_s: float | None
    start_timeout_s: float | None = None
    state: LeaseState = LeaseState.STARTING
    ready_at: float | None = None
    next_at: float = 0.0
    why: str = ""
    shared: str = ""
    slowest_look_s: float = SLOWEST_LOOK_S
    _pause_s: float = FIRST_LOOK_S
    _failures: int = 0
    _bad_since: float | None = None
    _suspended_at: float | None = None

    def __post_init__(self) -> None:
        self.next_at = self.started_at + self._pause_s

    def not_listening(self, now: float) -> Verdict:
        """Take in that nobody listens: no failure while it starts, for as long as that may take."""
        if self.state is LeaseState.STARTING:
            self._plan(now)
            if self.start_timeout_s is None or now - self.started_at < self.start_timeout_s:
                return Verdict.NOTHING
            self.why = "nothing listens on its port"
            self._bad_since = self.started_at
            return Verdict.GIVE_UP
        return self.bad(now, "nothing listens on its port")

    def good(self, now: float) -> Verdict:
        """Take in a good answer."""
        wanted = LeaseState.DEGRADED if self.shared else LeaseState.READY
        changed = self.state is not wanted
        self.state = wanted
        self._failures, self._bad_since, self.why = 0, None, self.shared
        if self.ready_at is None and not self.shared:
            self.ready_at = now
        self._plan(now)
        if not changed:
            return Verdict.NOTHING
        return Verdict.DEGRADED if self.shared else Verdict.READY

    def running(self, now: float, long_enough_s: float) -> Verdict:
        """Take in that it runs, for a worker of which nothing more is asked."""
        if self.state is LeaseState.STARTING and now - self.started_at < long_enough_s:
            self._plan(now)
            return Verdict.NOTHING
        return self.good(now)

    @property
    def never_listened(self) -> bool:
        """Whether it is given up because it has not listened in time."""
        return self.state is LeaseState.STARTING and self._bad_since == self.started_at

    def bad(self, now: float, why: str) -> Verdict:
        """Take in a check that failed."""
        self.why = why
        self._failures += 1
        if self._bad_since is None:
            self._bad_since = now
        self._plan(now)
        if self.give_up_after_s is not None and now - self._bad_since >= self.give_up_after_s:
            return Verdict.GIVE_UP
        if self.state is LeaseState.READY and self._failures >= FAILURES_TO_DEGRADE:
            self.state = LeaseState.DEGRADED
            return Verdict.DEGRADED
        return Verdict.NOTHING

    def suspended(self, now: float) -> bool:
        """Take in that the worker stands still because somebody wants it to; return whether that changes its state."""
        self._suspended_at = now
        changed = self.state is LeaseState.READY
        if changed:
            self.state = LeaseState.DEGRADED
        return changed

    def resumed(self, now: float) -> None:
        """Take in that it goes on: the time between counts for nothing, and it is checked at once."""
        if self._suspended_at is None:
            return
        self.started_at += now - self._suspended_at
        self._failures, self._bad_since, self._suspended_at, self.next_at = 0, None, None, now

    def was_well(self, now: float) -> bool:
        """Return whether this start went well: ready for a minute or more, and ready still."""
        return self.ready_at is not None and self.state is LeaseState.READY and now - self.ready_at >= HEALTHY_S

    def bad_for(self, now: float) -> float:
        """Return for how many seconds no check has been good."""
        return 0.0 if self._bad_since is None else now - self._bad_since

    def _plan(self, now: float) -> None:
        if self.state is LeaseState.STARTING:
            is_only_looked_at = not self.why and now - self.started_at < SLOW_START_S
            slowest_s = self.slowest_look_s if is_only_looked_at else SLOWEST_START_CHECK_S
            self._pause_s = min(self._pause_s * STEP, slowest_s, self.interval_s)
            self.next_at = now + self._pause_s
            ends_at = self.started_at + (self.start_timeout_s or 0.0)
            if ends_at > now:
                self.next_at = min(self.next_at, ends_at)
            return
        self.next_at = now + self.interval_s
        if self._bad_since is not None and self.give_up_after_s is not None:
            self.next_at = min(self.next_at, max(now + FIRST_CHECK_S, self._bad_since + self.give_up_after_s))
