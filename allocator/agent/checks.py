"""The health of one lease that is bound to a process: by its label `health` a path such as `/health`, `tcp` or `none`.

Without the label it is `tcp`: ready when its port is listened on.

Blocks nothing: a question that is on its way is looked at again at the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.client.health import Health, Verdict
from allocator.kernel.port_watch import Owner, PortWatch, described
from allocator.kernel.probes import Answer, Probe
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from allocator.agent.kin import Kin
    from allocator.model.leases import Lease

LABEL = "health"
CONNECT = "tcp"
SLOWEST_LOOK_S = 0.25
"""How often a worker that starts is looked at, at most: an agent may look after a thousand."""

INTERVAL_S = 5.0
PROBE_TIMEOUT_S = 2.0


def asks_for_checks(labels: Mapping[str, str]) -> bool:
    """Return whether a lease is to be checked."""
    asked = labels.get(LABEL, CONNECT)
    return asked == CONNECT or (asked.startswith("/") and asked.isascii() and asked.isprintable() and " " not in asked)


class Check:
    """The checks of one lease.

    Args:
        lease: The lease, with the label that names what to ask.
        kin: The processes that the listening socket may belong to.
        now: The caller's clock, in seconds.
    """

    def __init__(self, lease: Lease, kin: Kin, now: float) -> None:
        asked = lease.labels.get(LABEL, CONNECT)
        self._path = None if asked == CONNECT else asked
        self._number = lease.port
        self._port = PortWatch(lease.port, kin.members)
        self._probe: Probe | None = None
        self._health = Health(now, INTERVAL_S, None, slowest_look_s=SLOWEST_LOOK_S)
        if lease.state in {LeaseState.READY, LeaseState.DEGRADED}:
            self._health.state = lease.state
            self._health.ready_at = now

    def __repr__(self) -> str:
        return f"<Check of port {self._number}, {self._health.state}>"

    @property
    def due_at(self) -> float:
        """When there is something to look at."""
        return self._health.next_at if self._probe is None else 0.0

    @property
    def state(self) -> LeaseState:
        """The health of the worker."""
        return self._health.state

    @property
    def why(self) -> str:
        """What was wrong last, or an empty string."""
        return self._health.why

    def step(self, now: float) -> bool:
        """Go on; return whether the state is another one."""
        if self._probe is None:
            return now >= self._health.next_at and self._look(now)
        answer = self._probe.advance()
        if answer is None and now >= self._probe.deadline:
            answer = self._probe.expired()
        if answer is None:
            return False
        self.close()
        return self._take(answer, now)

    def close(self) -> None:
        """Abandon a question on its way."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _look(self, now: float) -> bool:
        seen = self._port.look()
        self._health.shared = described(seen.strangers) if seen.owner is Owner.WORKER else ""
        if seen.owner is Owner.NOBODY or seen.address is None:
            verdict = self._health.not_listening(now)
            if seen.owner is Owner.STRANGER:
                self._health.why = "another process listens on its port"
            return verdict is Verdict.DEGRADED
        try:
            self._probe = Probe(seen.address, self._number, self._path, now + PROBE_TIMEOUT_S)
        except OSError as error:
            return self._take(Answer(False, f"it could not be asked: {error.strerror or error}"), now)
        return False

    def _take(self, answer: Answer, now: float) -> bool:
        verdict = self._health.good(now) if answer.healthy else self._health.bad(now, answer.why)
        return verdict in {Verdict.READY, Verdict.DEGRADED}
