"""The agent's core: one loop that reads lease files, renews, releases, checks and reaps; it runs no worker.

It keeps nothing that the lease files and Redis do not have: killed, upgraded or rebooted, the next one reads both and
goes on. A lease is released only when its process has surely ended; what this process cannot tell, it leaves alone.
Commands need not speak to it: a lease file that appears is seen within `LOOK_S`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from allocator.agent.checks import asks_for_checks, check_of
from allocator.agent.exits import Exits
from allocator.agent.kin import Kin
from allocator.agent.tied import TiedLease, process_of
from allocator.agent.troubles import Troubles
from allocator.client.counting import HolderCounts, with_held
from allocator.client.health import Verdict
from allocator.client.heartbeats import about
from allocator.kernel.holders import is_of_this_kernel
from allocator.kernel.identity import boot_id
from allocator.model.errors import AllocatorError, ConfigurationError, HeldError, StoreUnavailableError
from allocator.model.states import LeaseState
from allocator.model.values import replace
from allocator.operations import listing
from allocator.operations import renew as renewing
from allocator.operations.claim import end_the_dead
from allocator.operations.context import pool_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease
    from allocator.operations.renew import RenewOutcome

LOOK_S = 0.25
"""How soon a new lease file is seen: one stat(2) of a directory each time."""

SCAN_S = 30.0
"""How often the files are read again although their directory did not change."""

LOOK_BACK_S = 60.0
"""How often what Redis has of this host is compared with what is known here: a drain that was taken back between two
renewals shows in nothing else."""

LONGEST_REAP_S = 30.0
REAP_SPREAD_S = 0.05
"""The agents of a fleet share the reaper's visits: each waits at random, longer by this for every host there is."""

log = logging.getLogger("allocator.agent")


class HostAgent:
    """Looks after the leases of one host.

    Args:
        allocator: The connection, and which host it is.
        places: The lease files of each user whose leases it looks after.
        on_step: Called after each round.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        places: Sequence[LeaseFiles],
        *,
        on_step: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allocator, self._places, self._on_step, self._clock = allocator, places, on_step, clock
        self._tied: dict[tuple[LeaseFiles, str], TiedLease] = {}
        self._seen: dict[tuple[LeaseFiles, str], int] = {}
        self._changed_at: dict[LeaseFiles, int] = {}
        self._exits = Exits()
        self._scan_at = 0.0
        self._troubles = Troubles()
        self._reap_at: dict[str, float] = {allocator.session.pool: 0.0}
        self._look_back_at: dict[str, float] = {}
        self._stopping = False
        self._counts = defaultdict(HolderCounts, {allocator.session.pool: HolderCounts()})

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of the leases that it looks after, by pool."""
        return with_held(self._counts, [(one.lease.pool, one.doubtful) for one in list(self._tied.values())])

    def __repr__(self) -> str:
        return f"<HostAgent {self._allocator.session.host} with {len(self._tied)} leases>"

    def take_over(self) -> int:
        """Read all lease files once; return how many leases are bound to a process of this host."""
        self._scan(self._clock())
        return len(self._tied)

    def run(self) -> None:
        """Look after the leases until `stop`; they live on when it returns, for as long as their TTL."""
        try:
            while not self._stopping:
                self.step()
                for key in self._exits.wait(self._seconds_to_wait()):
                    self._end(key)  # type: ignore[arg-type]  # keys of `_tied`
        finally:
            self._exits.close()

    def stop(self) -> None:
        """Let `run` return; from any thread or signal handler."""
        self._stopping = True
        self._exits.wake()

    def look(self) -> None:
        """Let a change of the lease files be seen at once; from any thread."""
        self._exits.wake()

    def step(self) -> None:
        """Do what is due now, without waiting; a failure of one pool does not stop the others."""
        now = self._clock()
        if self._files_changed() or now >= self._scan_at:
            self._scan(now)
        for pool, leases in self._by_pool().items():
            if not self._troubles.is_due(pool, now):
                continue
            try:
                self._look_after(pool, leases, now)
            except StoreUnavailableError as error:
                self._troubles.failed(pool, error, now)
                self._doubt(leases, now)
            else:
                self._troubles.ended(pool)
        self._check_health(now)
        self._on_step()

    def _look_after(self, pool: str, leases: list[TiedLease], now: float) -> None:
        self._renew_due(leases, now)
        self._release_ended(leases, now)
        if now >= self._look_back_at.get(pool, 0.0) and self._troubles.is_due((pool, "boot"), now):
            with self._troubles.concerning((pool, "boot"), now):
                self._look_back(pool, leases, now)
        if now >= self._reap_at[pool] and self._troubles.is_due((pool, "reap"), now):
            with self._troubles.concerning((pool, "reap"), now):
                self._reap(pool, now)

    def _doubt(self, leases: list[TiedLease], now: float) -> None:
        """Mark the leases whose time has passed; they are renewed all the same when Redis is back."""
        for tied in leases:
            if tied.lease.deadline is not None and now >= tied.lease.deadline and not tied.doubtful:
                tied.doubtful = True
                self._counts[tied.lease.pool].doubts += 1

    def _by_pool(self) -> dict[str, list[TiedLease]]:
        """Return the leases by pool: of the agent's own pool, and of every pool in the lease files."""
        found: dict[str, list[TiedLease]] = {self._allocator.session.pool: []}
        for tied in self._tied.values():
            found.setdefault(tied.lease.pool, []).append(tied)
        self._reap_at = {pool: self._reap_at.get(pool, 0.0) for pool in found}
        return found

    def _seconds_to_wait(self) -> float:
        checks = [tied.check for tied in self._tied.values() if tied.check]
        due = [check.health.next_at if check.probe is None else 0.0 for check in checks]
        return max(0.02, min([LOOK_S, *(at - self._clock() for at in due)]))

    # -- lease files --

    def _files_changed(self) -> bool:
        changed = False
        for place in self._places:
            try:
                at = place.directory.stat().st_mtime_ns
            except OSError:
                at = 0
            if self._changed_at.get(place) != at:
                self._changed_at[place] = at
                changed = True
        return changed

    def _scan(self, now: float) -> None:
        self._scan_at = now + SCAN_S
        found: dict[tuple[LeaseFiles, str], int] = {}
        for place in self._places:
            try:
                found |= self._files_of(place)
            except AllocatorError as error:  # what is known of this user's leases stays
                self._troubles.failed(place, error, now)
                found |= {key: at for key, at in self._seen.items() if key[0] == place}
            else:
                self._troubles.ended(place)
        for key in self._seen.keys() - found.keys():
            self._forget(key)  # somebody released it
        for key, at in found.items():
            if self._seen.get(key) != at:
                self._read(key, now)
        self._seen = found

    def _files_of(self, place: LeaseFiles) -> dict[tuple[LeaseFiles, str], int]:
        """Return the lease files of one user, with the time of their last change.

        A file that is gone was released by somebody; when the whole folder is gone, nobody has released anything.
        """
        names = place.scan()
        if names is None and any(key[0] == place for key in self._tied):
            raise ConfigurationError(f"the folder {place.directory} is gone; its leases end with their processes")
        return {(place, name): at for name, at in (names or {}).items()}

    def _read(self, key: tuple[LeaseFiles, str], now: float) -> None:
        place, name = key
        try:
            lease = place.read(name)
            if lease is None or lease.pid is None or not self._is_of_this_host(lease):
                self._forget(key)
                return
            self._tie(TiedLease(lease, place, name))
        except AllocatorError as error:
            self._troubles.failed(key, error, now)
        else:
            self._troubles.ended(key)

    def _is_of_this_host(self, lease: Lease) -> bool:
        """Return whether a lease is this host's, or was claimed here under another name: the machine was renamed."""
        return lease.host == self._allocator.session.host or is_of_this_kernel(lease)

    def _tie(self, tied: TiedLease) -> None:
        known = self._tied.get(tied.key)
        if known and known.lease.token == tied.lease.token and _process(known.lease) == _process(tied.lease):
            tied.renew_at, tied.changed = known.renew_at, known.changed
            tied.draining, tied.kin = known.draining, known.kin
            if dict(known.lease.labels) == dict(tied.lease.labels):
                tied.check = known.check
        if tied.kin is None:
            tied.kin = Kin.of(tied.lease.pid or 0)
        process = process_of(tied.lease)
        self._exits.remove(tied.key)
        self._tied[tied.key] = tied
        if process is None or not self._exits.add(tied.key, process):
            self._end(tied.key)
        elif tied.check is None and asks_for_checks(tied.lease.labels):
            tied.check = check_of(tied.lease, tied.kin, self._clock())

    def _forget(self, key: tuple[LeaseFiles, str]) -> None:
        self._exits.remove(key)
        self._troubles.ended(key)
        tied = self._tied.pop(key, None)
        if tied and tied.check:
            tied.check.close()

    def _end(self, key: tuple[LeaseFiles, str]) -> None:
        self._exits.remove(key)
        tied = self._tied.get(key)
        if tied is not None and not self._follow(tied):
            tied.ended = True

    def _follow(self, tied: TiedLease) -> bool:
        """Bind a lease whose process has ended to one of its group or session that listens; return whether one does."""
        lease, kin = tied.lease, tied.kin
        heir = kin.listener(lease.port) if kin else None
        if kin is None or heir is None or heir.pid == lease.pid or not self._exits.add(tied.key, heir):
            return False
        tied.lease = replace(lease, pid=heir.pid, pid_started=heir.start_time)
        tied.kin = replace(kin, pid=heir.pid)
        if asks_for_checks(lease.labels):
            tied.check = check_of(tied.lease, tied.kin, self._clock())
        tied.changed, tied.renew_at = True, 0.0
        words = (lease.pid, heir.pid, lease.address, lease.worker)
        log.warning("process %s has ended and process %s listens on %s: it has %s now", *words, extra=about(tied.lease))
        self._save(tied)
        return True

    # -- Redis --

    def _release_ended(self, leases: list[TiedLease], now: float) -> None:
        for tied in leases:
            if tied.ended and tied.key in self._tied and self._troubles.is_due(tied.key, now):
                with self._troubles.concerning(tied.key, now, tied.lease):
                    self._release(tied)

    def _release(self, tied: TiedLease) -> None:
        lease = tied.lease
        if self._has_a_new_process(tied):
            return
        try:
            released = self._allocator.release(lease)
        except HeldError as error:
            log.warning("%s", error, extra=about(lease))
            released = False
        if released:
            words = (lease.pid, lease.address, lease.worker)
            log.info("process %s has ended: released %s of %s", *words, extra=about(lease))
        tied.files.remove(lease)
        self._forget(tied.key)

    def _look_back(self, pool: str, leases: list[TiedLease], now: float) -> None:
        """Release the leases of `run` from before the machine's last start.

        A lease that is draining, of a host that is not any more, goes back to what its health is.
        """
        context = self._allocator.session.context
        for lease in self._allocator.run(listing.leases(pool, context.host)):
            for tied in leases:
                if lease.state is LeaseState.DRAINING and lease.fence == tied.lease.fence:
                    tied.draining = True  # if it is not to be: the next renewal tells
            if self._is_of_an_earlier_boot(lease) and self._allocator.run(end_the_dead(context, lease)):
                words = (lease.address, lease.worker)
                log.info("the machine was started again: released %s of %s", *words, extra=about(lease))
        self._look_back_at[pool] = now + LOOK_BACK_S * self._allocator.session.rng.uniform(0.8, 1.2)

    def _is_of_an_earlier_boot(self, lease: Lease) -> bool:
        """Return whether a lease of this host is from before the machine was started again: its token went with it."""
        return lease.host == self._allocator.session.host and bool(boot_id()) and lease.boot not in {None, boot_id()}

    def _has_a_new_process(self, tied: TiedLease) -> bool:
        """Return whether the worker has claimed again meanwhile: the same lease, bound to its new process."""
        lease = tied.lease
        known = tied.files.read(tied.name)
        if known is not None and (known.token != lease.token or _process(known) != _process(lease)):
            self._seen.pop(tied.key, None)
            self._scan_at = 0.0
            self._forget(tied.key)
            return True
        rules = self._allocator.run(pool_rules(self._allocator.session.context, lease.pool))
        space = rules.space_of(lease.host)
        live = self._allocator.run(listing.port_view(lease.pool, space, lease.port)).lease
        # Its file follows within a moment; if it does not, the lease ends by its TTL.
        return live is not None and live.worker == lease.worker and _process(live) != _process(lease)

    def _renew_due(self, leases: list[TiedLease], now: float) -> None:
        due = [tied for tied in leases if now >= tied.renew_at and not tied.ended]
        due = [tied for tied in due if self._troubles.is_due(tied.key, now)]
        for rewrite in (False, True):
            if chosen := [tied for tied in due if tied.changed is rewrite]:
                self._renew(chosen, now, rewrite=rewrite)

    def _renew(self, chosen: list[TiedLease], now: float, *, rewrite: bool) -> None:
        leases = [tied.lease for tied in chosen]
        session = self._allocator.session
        try:
            with session.span("renew", *leases) as span:
                renewal = renewing.renew_each(session.context, leases, rewrite=rewrite)
                outcomes = span.renewed(self._allocator.run(renewal))
        except AllocatorError:
            for lease in leases:
                self._counts[lease.pool].renewals["unanswered"] += 1
            raise
        for tied, outcome in zip(chosen, outcomes, strict=True):
            self._counts[tied.lease.pool].renewals[outcome.word] += 1
            self._apply(tied, outcome, now)

    def _apply(self, tied: TiedLease, outcome: RenewOutcome, now: float) -> None:
        """Take over what became of one lease at its renewal."""
        if outcome.failed:
            self._troubles.failed(tied.key, outcome.failed, now, tied.lease)
            return
        self._troubles.ended(tied.key)
        if outcome.lost:
            log.error("%s", outcome.lost, extra=about(tied.lease))
            with contextlib.suppress(AllocatorError):  # its owner may have put anything there by now
                tied.files.remove(tied.lease)
            self._forget(tied.key)
            return
        before = tied.lease
        tied.confirm(outcome.lease, now)
        if tied.draining and not outcome.draining:  # the host gives out ports again: back to what its health is
            tied.changed, tied.renew_at = True, now
        tied.draining = outcome.draining
        if outcome.reap_due:
            self._reap_at[before.pool] = now
        if outcome.lease.fence != before.fence:
            words = (before.worker, before.address)
            log.warning("re-asserted the lease of %s on %s", *words, extra=about(outcome.lease))
            self._save(tied)

    def _save(self, tied: TiedLease) -> None:
        try:
            tied.files.save(tied.lease)
        except AllocatorError as error:
            log.warning("%s", error, extra=about(tied.lease))

    def _reap(self, pool: str, now: float) -> None:
        reaped = self._allocator.run(listing.reap(pool))
        wait_s = LONGEST_REAP_S if reaped.next_s is None else max(LOOK_S, reaped.next_s)
        wait_s += self._allocator.session.rng.uniform(0.0, REAP_SPREAD_S * reaped.spaces)
        self._reap_at[pool] = now + min(LONGEST_REAP_S, wait_s)

    # -- health --

    def _check_health(self, now: float) -> None:
        for tied in self._tied.values():
            if tied.check is None or tied.ended or tied.check.step(now) not in {Verdict.READY, Verdict.DEGRADED}:
                continue
            health = tied.check.health
            said = replace(tied.lease, state=health.state)
            tied.lease = replace(said, last_error=health.why) if health.why else said
            tied.changed, tied.renew_at = True, now  # written with the next renewal, which is due now
            log.info("%s on %s is %s", said.worker, said.address, said.state, extra=about(said))
            self._save(tied)


def _process(lease: Lease) -> tuple[int | None, int | None]:
    return lease.pid, lease.pid_started
