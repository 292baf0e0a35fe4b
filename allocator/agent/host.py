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

from allocator.agent.bound import BoundLease, process_of
from allocator.agent.checks import asks_for_checks, check_of
from allocator.agent.exits import Exits
from allocator.agent.family import ProcessFamily
from allocator.agent.troubles import Troubles
from allocator.client.counts import HolderCounts, with_held
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
    """Renews, checks and releases the leases that are bound to processes of one host.

    Args:
        allocator: The connection, and which host it is.
        folders: The lease files of each user.
        on_step: Called after each round.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        allocator: PortAllocator,
        folders: Sequence[LeaseFiles],
        *,
        on_step: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allocator, self._folders, self._on_step, self._clock = allocator, folders, on_step, clock
        self._bound: dict[tuple[LeaseFiles, str], BoundLease] = {}
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
        """The counts of renewals and losses, by pool."""
        return with_held(self._counts, [(one.lease.pool, one.doubtful) for one in list(self._bound.values())])

    def __repr__(self) -> str:
        return f"<HostAgent {self._allocator.session.host} with {len(self._bound)} leases>"

    def take_over(self) -> int:
        """Read all lease files once; return how many leases are bound to a process of this host."""
        self._scan(self._clock())
        return len(self._bound)

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

    def _look_after(self, pool: str, leases: list[BoundLease], now: float) -> None:
        self._renew_due(leases, now)
        self._release_ended(leases, now)
        if now >= self._look_back_at.get(pool, 0.0) and self._troubles.is_due((pool, "boot"), now):
            with self._troubles.concerning((pool, "boot"), now):
                self._look_back(pool, leases, now)
        if now >= self._reap_at[pool] and self._troubles.is_due((pool, "reap"), now):
            with self._troubles.concerning((pool, "reap"), now):
                self._reap(pool, now)

    def _doubt(self, leases: list[BoundLease], now: float) -> None:
        """Mark the leases whose time has passed; they are renewed all the same when Redis is back."""
        for bound in leases:
            if bound.lease.deadline is not None and now >= bound.lease.deadline and not bound.doubtful:
                bound.doubtful = True
                self._counts[bound.lease.pool].doubts += 1

    def _by_pool(self) -> dict[str, list[BoundLease]]:
        """Return the leases by pool: of the agent's own pool, and of every pool in the lease files."""
        found: dict[str, list[BoundLease]] = {self._allocator.session.pool: []}
        for bound in self._bound.values():
            found.setdefault(bound.lease.pool, []).append(bound)
        self._reap_at = {pool: self._reap_at.get(pool, 0.0) for pool in found}
        return found

    def _seconds_to_wait(self) -> float:
        checks = [bound.check for bound in self._bound.values() if bound.check]
        due = [check.health.next_at if check.probe is None else 0.0 for check in checks]
        return max(0.02, min([LOOK_S, *(at - self._clock() for at in due)]))

    # -- lease files --

    def _files_changed(self) -> bool:
        changed = False
        for folder in self._folders:
            try:
                at = folder.directory.stat().st_mtime_ns
            except OSError:
                at = 0
            if self._changed_at.get(folder) != at:
                self._changed_at[folder] = at
                changed = True
        return changed

    def _scan(self, now: float) -> None:
        self._scan_at = now + SCAN_S
        found: dict[tuple[LeaseFiles, str], int] = {}
        for folder in self._folders:
            try:
                found |= self._files_of(folder)
            except AllocatorError as error:  # what is known of this user's leases stays
                self._troubles.failed(folder, error, now)
                found |= {key: at for key, at in self._seen.items() if key[0] == folder}
            else:
                self._troubles.ended(folder)
        for key in self._seen.keys() - found.keys():
            self._forget(key)  # somebody released it
        for key, at in found.items():
            if self._seen.get(key) != at:
                self._read(key, now)
        self._seen = found

    def _files_of(self, folder: LeaseFiles) -> dict[tuple[LeaseFiles, str], int]:
        """Return the lease files of one user, with the time of their last change.

        A file that is gone was released by somebody; when the whole folder is gone, nobody has released anything.
        """
        names = folder.scan()
        if names is None and any(key[0] == folder for key in self._bound):
            raise ConfigurationError(f"the folder {folder.directory} is gone; its leases end with their processes")
        return {(folder, name): at for name, at in (names or {}).items()}

    def _read(self, key: tuple[LeaseFiles, str], now: float) -> None:
        folder, name = key
        try:
            lease = folder.read(name)
            if lease is None or lease.pid is None or not self._is_of_this_host(lease):
                self._forget(key)
                return
            self._bind(BoundLease(lease, folder, name))
        except AllocatorError as error:
            self._troubles.failed(key, error, now)
        else:
            self._troubles.ended(key)

    def _is_of_this_host(self, lease: Lease) -> bool:
        """Return whether a lease is this host's, or was claimed here under another name: the machine was renamed."""
        return lease.host == self._allocator.session.host or is_of_this_kernel(lease)

    def _bind(self, bound: BoundLease) -> None:
        known = self._bound.get(bound.key)
        if known and known.lease.token == bound.lease.token and _process(known.lease) == _process(bound.lease):
            bound.renew_at, bound.changed = known.renew_at, known.changed
            bound.draining, bound.family = known.draining, known.family
            if dict(known.lease.labels) == dict(bound.lease.labels):
                bound.check = known.check
        if bound.family is None:
            bound.family = ProcessFamily.of(bound.lease.pid or 0)
        process = process_of(bound.lease)
        self._exits.remove(bound.key)
        self._bound[bound.key] = bound
        if process is None or not self._exits.add(bound.key, process):
            self._end(bound.key)
        elif bound.check is None and asks_for_checks(bound.lease.labels):
            bound.check = check_of(bound.lease, bound.family, self._clock())

    def _forget(self, key: tuple[LeaseFiles, str]) -> None:
        self._exits.remove(key)
        self._troubles.ended(key)
        bound = self._bound.pop(key, None)
        if bound and bound.check:
            bound.check.close()

    def _end(self, key: tuple[LeaseFiles, str]) -> None:
        self._exits.remove(key)
        bound = self._bound.get(key)
        if bound is not None and not self._follow(bound):
            bound.ended = True

    def _follow(self, bound: BoundLease) -> bool:
        """Bind a lease whose process has ended to one of its group or session that listens; return whether one does."""
        lease, family = bound.lease, bound.family
        heir = family.listener(lease.port) if family else None
        if family is None or heir is None or heir.pid == lease.pid or not self._exits.add(bound.key, heir):
            return False
        bound.lease = replace(lease, pid=heir.pid, pid_started=heir.start_time)
        bound.family = replace(family, pid=heir.pid)
        if asks_for_checks(lease.labels):
            bound.check = check_of(bound.lease, bound.family, self._clock())
        bound.changed, bound.renew_at = True, 0.0
        details = (lease.pid, heir.pid, lease.address, lease.worker)
        log.warning(
            "process %s has ended and process %s listens on %s: it has %s now", *details, extra=about(bound.lease)
        )
        self._save(bound)
        return True

    # -- Redis --

    def _release_ended(self, leases: list[BoundLease], now: float) -> None:
        for bound in leases:
            if bound.ended and bound.key in self._bound and self._troubles.is_due(bound.key, now):
                with self._troubles.concerning(bound.key, now, bound.lease):
                    self._release(bound)

    def _release(self, bound: BoundLease) -> None:
        lease = bound.lease
        if self._has_a_new_process(bound):
            return
        try:
            released = self._allocator.release(lease)
        except HeldError as error:
            log.warning("%s", error, extra=about(lease))
            released = False
        if released:
            details = (lease.pid, lease.address, lease.worker)
            log.info("process %s has ended: released %s of %s", *details, extra=about(lease))
        bound.files.remove(lease)
        self._forget(bound.key)

    def _look_back(self, pool: str, leases: list[BoundLease], now: float) -> None:
        """Release the leases of `run` from before the machine's last start.

        A lease that is still `draining` after `host uncordon` gets the state of its health check again.
        """
        context = self._allocator.session.context
        for lease in self._allocator.run(listing.leases(pool, context.host)):
            for bound in leases:
                if lease.state is LeaseState.DRAINING and lease.fence == bound.lease.fence:
                    bound.draining = True  # if it is not to be: the next renewal tells
            if self._is_of_an_earlier_boot(lease) and self._allocator.run(end_the_dead(context, lease)):
                details = (lease.address, lease.worker)
                log.info("the machine was started again: released %s of %s", *details, extra=about(lease))
        self._look_back_at[pool] = now + LOOK_BACK_S * self._allocator.session.rng.uniform(0.8, 1.2)

    def _is_of_an_earlier_boot(self, lease: Lease) -> bool:
        """Return whether a lease of this host is from before the machine was started again: its token went with it."""
        return lease.host == self._allocator.session.host and bool(boot_id()) and lease.boot not in {None, boot_id()}

    def _has_a_new_process(self, bound: BoundLease) -> bool:
        """Return whether the worker has claimed again meanwhile: the same lease, bound to its new process."""
        lease = bound.lease
        known = bound.files.read(bound.name)
        if known is not None and (known.token != lease.token or _process(known) != _process(lease)):
            self._seen.pop(bound.key, None)
            self._scan_at = 0.0
            self._forget(bound.key)
            return True
        rules = self._allocator.run(pool_rules(self._allocator.session.context, lease.pool))
        namespace = rules.namespace_of(lease.host)
        live = self._allocator.run(listing.port_view(lease.pool, namespace, lease.port)).lease
        # Its file follows within a moment; if it does not, the lease ends by its TTL.
        return live is not None and live.worker == lease.worker and _process(live) != _process(lease)

    def _renew_due(self, leases: list[BoundLease], now: float) -> None:
        due = [bound for bound in leases if now >= bound.renew_at and not bound.ended]
        due = [bound for bound in due if self._troubles.is_due(bound.key, now)]
        for rewrite in (False, True):
            if chosen := [bound for bound in due if bound.changed is rewrite]:
                self._renew(chosen, now, rewrite=rewrite)

    def _renew(self, chosen: list[BoundLease], now: float, *, rewrite: bool) -> None:
        leases = [bound.lease for bound in chosen]
        session = self._allocator.session
        try:
            with session.span("renew", *leases) as span:
                renewal = renewing.renew_each(session.context, leases, rewrite=rewrite)
                outcomes = span.renewed(self._allocator.run(renewal))
        except AllocatorError:
            for lease in leases:
                self._counts[lease.pool].renewals["unanswered"] += 1
            raise
        for bound, outcome in zip(chosen, outcomes, strict=True):
            self._counts[bound.lease.pool].renewals[outcome.code] += 1
            self._apply(bound, outcome, now)

    def _apply(self, bound: BoundLease, outcome: RenewOutcome, now: float) -> None:
        """Apply the outcome of one lease's renewal."""
        if outcome.failed:
            self._troubles.failed(bound.key, outcome.failed, now, bound.lease)
            return
        self._troubles.ended(bound.key)
        if outcome.lost:
            log.error("%s", outcome.lost, extra=about(bound.lease))
            with contextlib.suppress(AllocatorError):  # its owner may have put anything there by now
                bound.files.remove(bound.lease)
            self._forget(bound.key)
            return
        before = bound.lease
        bound.confirm(outcome.lease, now)
        if bound.draining and not outcome.draining:  # the host gives out ports again: back to what its health is
            bound.changed, bound.renew_at = True, now
        bound.draining = outcome.draining
        if outcome.reap_due:
            self._reap_at[before.pool] = now
        if outcome.lease.fence != before.fence:
            details = (before.worker, before.address)
            log.warning("re-asserted the lease of %s on %s", *details, extra=about(outcome.lease))
            self._save(bound)

    def _save(self, bound: BoundLease) -> None:
        try:
            bound.files.save(bound.lease)
        except AllocatorError as error:
            log.warning("%s", error, extra=about(bound.lease))

    def _reap(self, pool: str, now: float) -> None:
        reaped = self._allocator.run(listing.reap(pool))
        wait_s = LONGEST_REAP_S if reaped.next_s is None else max(LOOK_S, reaped.next_s)
        wait_s += self._allocator.session.rng.uniform(0.0, REAP_SPREAD_S * reaped.namespaces)
        self._reap_at[pool] = now + min(LONGEST_REAP_S, wait_s)

    # -- health --

    def _check_health(self, now: float) -> None:
        for bound in self._bound.values():
            if bound.check is None or bound.ended or bound.check.step(now) not in {Verdict.READY, Verdict.DEGRADED}:
                continue
            health = bound.check.health
            checked = replace(bound.lease, state=health.state)
            bound.lease = replace(checked, last_error=health.why) if health.why else checked
            bound.changed, bound.renew_at = True, now  # written with the next renewal, which is due now
            log.info("%s on %s is %s", checked.worker, checked.address, checked.state, extra=about(checked))
            self._save(bound)


def _process(lease: Lease) -> tuple[int | None, int | None]:
    return lease.pid, lease.pid_started
