"""The health of a worker: starting, ready, degraded, and when it is given up; and the checks that find it.

`Health` is a small state machine without I/O: it takes the result of each check, and returns what follows and when the
next one is due. `HealthCheck` looks who listens on the worker's port, asks the worker, and blocks nothing: a question
that is on its way is looked at again at the next step. A supervisor has one for its worker, an agent one for each.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from allocator.kernel.port_watch import Owner, described
from allocator.kernel.probes import Answer, Probe
from allocator.model.states import LeaseState
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.kernel.port_watch import PortState, PortWatch

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
PROBE_TIMEOUT_S = 2.0
READY_AFTER_S = 1.0
"""A worker that has nothing to listen on is ready when it has run for so long."""

STRANGER = "another process listens on its port"
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


class HealthCheck:
    """The checks of one worker.

    Args:
        health: Its health, which the checks find.
        port: The port that it listens on.
        watches: What looks at its ports, that one first.
        path: The path to ask for, or None to be content with a connection.
        listens: Whether it has to listen at all: otherwise it is well while it runs.
    """

    def __init__(
        self, health: Health, port: int, watches: Sequence[PortWatch], path: str | None, *, listens: bool = True
    ) -> None:
        self.health = health
        self.probe: Probe | None = None
        self.stranger_since: float | None = None
        self._port, self._path, self._listens = port, path, listens
        self._watch, *self._further = watches

    def __repr__(self) -> str:
        return f"<HealthCheck of port {self._port}, {self.health.state}>"

    def is_due(self, now: float) -> bool:
        """Return whether it is time to look, and nothing is asked yet."""
        return self.probe is None and now >= self.health.next_at

    def step(self, now: float) -> Verdict:
        """Go on with what is due; return what it changes."""
        if self.probe is None:
            return self._look(now) if self.is_due(now) else Verdict.NOTHING
        answer = self.probe.advance()
        if answer is None and now >= self.probe.deadline:
            answer = self.probe.expired()
        if answer is None:
            return Verdict.NOTHING
        self.close()
        return self._take(answer, now)

    def look(self) -> PortState:
        """Return who listens on its port."""
        return self._watch.look()

    def close(self) -> None:
        """Abandon a question on its way."""
        if self.probe is not None:
            self.probe.close()
            self.probe = None

    def _look(self, now: float) -> Verdict:
        seen = self.look()
        self.health.shared = self._sharing(seen)
        if not self._listens:
            return self.health.running(now, READY_AFTER_S)
        if seen.owner is Owner.STRANGER:
            return self._meet_stranger(now)
        self.stranger_since = None
        if seen.owner is Owner.NOBODY or seen.address is None:
            return self.health.not_listening(now)
        try:
            self.probe = Probe(seen.address, self._port, self._path, now + PROBE_TIMEOUT_S)
        except OSError as error:
            return self._take(Answer(False, f"it could not be asked: {error.strerror or error}"), now)
        return Verdict.NOTHING

    def _sharing(self, seen: PortState) -> str:
        """Return who else listens on one of its ports, as text: connections of its callers end there."""
        strangers = seen.strangers if seen.owner is Owner.WORKER or not self._listens else ()
        for watch in () if strangers else self._further:
            strangers = strangers or watch.look().strangers
        return described(strangers)

    def _meet_stranger(self, now: float) -> Verdict:
        if self.health.state is not LeaseState.STARTING:
            return self.health.bad(now, STRANGER)
        if self.stranger_since is None:
            self.stranger_since = now
        return self.health.not_listening(now)

    def _take(self, answer: Answer, now: float) -> Verdict:
        return self.health.good(now) if answer.healthy else self.health.bad(now, answer.why)
