"""A supervisor's claim: a lease that a hook left is the worker's own, claimed ahead, and `run` goes on with it.

It must never be taken from a supervisor or another process that lives and looks after it, nor while somebody listens on
its port: that would end a running worker's lease.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from allocator.kernel.answers import Answers, describe_listener
from allocator.kernel.holders import is_proven_dead
from allocator.kernel.identity import ProcessIdentity, boot_id, is_alive, namespaces
from allocator.kernel.processes import ancestors_of, command_name
from allocator.model.errors import ConfigurationError
from allocator.operations.steps import Judgement, Verdict
from allocator.supervisor.held import OWN

if TYPE_CHECKING:
    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease
    from allocator.operations.steps import JudgeHolder, StoreLeases, Warn
    from allocator.supervisor.spec import Reporter, WorkerSpec


def claim_ports(
    allocator: PortAllocator, spec: WorkerSpec, files: LeaseFiles | None, report: Reporter
) -> dict[str, Lease]:
    """Return the leases of a worker by the names of its ports, the worker's own first.

    Args:
        allocator: Claims them.
        spec: The worker.
        files: Where a hook of this user leaves its leases, or None to look nowhere.
        report: Prints one line for the person who watches.

    Raises:
        HeldError: When somebody else holds or uses one of them.
        AllocatorError: When they cannot be had; nothing is held then.
    """
    answers = HookAnswers(files, report) if files else Answers()
    operations, given = allocator.operations, spec.claim | {"holder_pid": os.getpid()}
    if spec.ports:
        several = operations.claim_ports(spec.plugin, spec.ports, contiguous=spec.contiguous, wait=spec.wait_s, **given)
        return allocator.run(several, answers)
    return {OWN: allocator.run(operations.claim(spec.plugin, wait=spec.wait_s, **given), answers)}


class HookAnswers(Answers):
    """Takes over the leases that `allocator claim` left in this user's state directory.

    Args:
        files: The lease files.
        report: Prints one line for the person who watches.
    """

    def __init__(self, files: LeaseFiles, report: Reporter) -> None:
        self._files, self._report = files, report
        self._taken: list[Lease] = []

    def judge_holder(self, step: JudgeHolder) -> Judgement:
        """Return the token of a hook's lease that nobody looks after and whose port nobody uses."""
        holder, known = step.holder, None
        with contextlib.suppress(ConfigurationError):  # a broken file, which may be any worker's, takes no port away
            known = self._files.find(holder.pool, step.host, holder.worker)
        if known is None or known.fence != holder.fence or not known.token:
            return super().judge_holder(step)
        if why := _in_use(holder, step.host):
            return Judgement(Verdict.ALIVE, why=why)
        self._taken.append(known)
        return Judgement(Verdict.OURS, known.token, is_spare=True)

    def warn(self, step: Warn) -> None:
        """Show the sentence to the person who watches."""
        self._report(step.sentence)

    def store_leases(self, step: StoreLeases) -> bool:
        """Remove the files of leases that were taken over: from here on this process looks after them, and no agent."""
        for lease in self._taken:
            self._files.remove(lease)
        return super().store_leases(step)


def _in_use(lease: Lease, host: str) -> str:
    """Return who looks after a lease or uses its port, and what to do about it; an empty text when nobody does."""
    ours = {os.getpid(), *ancestors_of(os.getpid())}
    if _lives(lease, host, lease.holder_pid, lease.holder_started, ours):
        return f"looked after by {_named(lease.holder_pid)}; end that supervisor"
    if _lives(lease, host, lease.pid, lease.pid_started, ours):
        return f"bound to {_named(lease.pid)}; end that process, or claim without --pid and leave the port to 'run'"
    who = describe_listener(lease.port)
    return f"and {who} listens there; end that process" if who else ""


def _lives(lease: Lease, host: str, pid: int | None, started: int | None, ours: set[int]) -> bool:
    """Return whether a process that a lease names may still live, and is neither this one nor what started it."""
    here = boot_id()
    if pid is None or pid in ours or (lease.boot is not None and lease.boot != here):
        return False
    if lease.namespaces is not None and lease.namespaces.partition("-")[0] != namespaces().partition("-")[0]:
        return not is_proven_dead(lease, host)
    return started is None or is_alive(ProcessIdentity(pid, started, here))


def _named(pid: int | None) -> str:
    name = command_name(pid or 0)
    return f"process {pid} ({name})" if name else f"process {pid}"
