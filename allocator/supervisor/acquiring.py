"""How a supervisor comes by its worker's ports: one or several, a hook's lease taken over, a dead one's superseded.

A lease that `allocator claim` left in the same state directory is the worker's own, claimed ahead: `run` goes on with
it. It must never be taken from a supervisor or another process that lives and looks after it, nor while somebody
listens on its port: that would end a running worker's lease.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from allocator.client.arguments import ttl_in_ms
from allocator.client.drivers import describe_listener
from allocator.client.superseding import claim_over_the_dead, is_proven_dead
from allocator.kernel.processes import ProcessIdentity, ancestors_of, boot_id, command_name, is_alive, namespaces
from allocator.model.errors import AllocatorError, ConfigurationError, HeldError, LeaseLostError
from allocator.model.names import WorkerId
from allocator.model.states import LeaseState
from allocator.operations.several import named_workers
from allocator.supervisor.held import OWN

if TYPE_CHECKING:
    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease
    from allocator.supervisor.spec import WorkerSpec


def acquire(allocator: PortAllocator, spec: WorkerSpec, files: LeaseFiles | None) -> dict[str, Lease]:
    """Return the leases of a worker by the names of its ports, the worker's own first.

    Args:
        allocator: Claims them.
        spec: The worker.
        files: Where a hook of this user leaves its leases, or None to look nowhere.

    Raises:
        HeldError: When somebody else holds or uses one of them.
        AllocatorError: When they cannot be had; nothing is held then.
    """
    names = spec.ports or (OWN,)
    worker = WorkerId(spec.claim["org"], spec.plugin, spec.claim.get("instance", 0))
    workers = named_workers(worker, spec.ports) if spec.ports else [worker]
    left = _left_by_a_hook(allocator, files, workers) if files else []
    if files and left and _are_ours(allocator, spec, left):
        if len(left) == len(workers) and spec.claim.get("port") in {None, left[0].port}:
            with contextlib.suppress(LeaseLostError):  # one ended this instant: they are claimed like any other
                return dict(zip(names, _taken_over(allocator, spec, files, left), strict=True))
        allocator.release_all(*left)  # the hook claimed another number of ports, or another port
        for lease in left:
            files.remove(lease)
    arguments = spec.claim | {"holder_pid": os.getpid()}
    if not spec.ports:
        return {OWN: claim_over_the_dead(allocator, spec.plugin, spec.wait_s, **arguments)}
    return _several(allocator, spec, workers)


def _left_by_a_hook(allocator: PortAllocator, files: LeaseFiles, workers: list[WorkerId]) -> list[Lease]:
    """Return the live leases of these workers whose tokens lie here, as Redis knows them."""
    session = allocator.session
    saved: list[Lease] = []
    with contextlib.suppress(ConfigurationError):  # a broken file, which may be any worker's, takes nobody's port away
        saved = [lease for worker in workers if (lease := files.find(session.pool, session.host, worker))]
    if not saved:
        return []
    live = {(lease.port, lease.fence): lease for lease in allocator.leases(host=session.host)}
    return [
        replace(live[lease.port, lease.fence], token=lease.token)
        for lease in saved
        if (lease.port, lease.fence) in live
    ]


def _are_ours(allocator: PortAllocator, spec: WorkerSpec, left: list[Lease]) -> bool:
    """Return whether nobody else looks after these leases or uses their ports; False when that may be waited for.

    Raises:
        HeldError: When somebody does, and nobody waits.
    """
    ours = {os.getpid(), *ancestors_of(os.getpid())}
    for lease in left:
        why = ""
        if _lives(allocator, lease, lease.holder_pid, lease.holder_started, ours):
            why = f"looked after by {_named(lease.holder_pid)}; end that supervisor"
        elif _lives(allocator, lease, lease.pid, lease.pid_started, ours):
            why = f"tied to {_named(lease.pid)}; end that process, or claim without --pid and leave the port to 'run'"
        elif who := describe_listener(lease.port):
            why = f"and {who} listens there; end that process"
        if why and spec.wait_s:
            return False
        if why:
            raise HeldError(
                f"{lease.worker} already has a lease on {lease.address}, {why}",
                holder=lease,
                host=lease.host,
                port=lease.port,
                worker=str(lease.worker),
            )
    return True


def _lives(allocator: PortAllocator, lease: Lease, pid: int | None, started: int | None, ours: set[int]) -> bool:
    """Return whether a process that a lease names may still live, and is neither this one nor what started it."""
    here = boot_id()
    if pid is None or pid in ours or (lease.boot is not None and lease.boot != here):
        return False
    if lease.namespaces is not None and lease.namespaces.partition("-")[0] != namespaces().partition("-")[0]:
        return not is_proven_dead(lease, allocator.session.host)
    return started is None or is_alive(ProcessIdentity(pid, started, here))


def _named(pid: int | None) -> str:
    name = command_name(pid or 0)
    return f"process {pid} ({name})" if name else f"process {pid}"


def _taken_over(allocator: PortAllocator, spec: WorkerSpec, files: LeaseFiles, left: list[Lease]) -> list[Lease]:
    pool = allocator.pool()
    ttl_s = spec.claim.get("ttl")
    ttl_ms = pool.check_ttl_ms(None if ttl_s is None else ttl_in_ms(ttl_s))
    mine = allocator.session.process_words(holder_pid=os.getpid())
    wanted = [
        replace(
            lease,
            state=LeaseState.STARTING,
            ttl_ms=ttl_ms,
            labels=spec.claim.get("labels") or lease.labels,
            **{"pid": None, "pid_started": None, **mine},  # type: ignore[arg-type]  # words of a lease, each with its type
        )
        for lease in left
    ]
    leases = allocator.renew(*wanted, rewrite=True)
    for lease in left:  # from here on this process looks after it, and no agent
        files.remove(lease)
    return leases


def _several(allocator: PortAllocator, spec: WorkerSpec, workers: list[WorkerId]) -> dict[str, Lease]:
    """Claim several ports, over leases of these workers whose processes are proven dead."""
    given = spec.claim.copy()
    given["holder_pid"] = os.getpid()
    given.pop("port", None)  # which one port it could be says nothing of several
    given.pop("hint", None)

    def claim(wait_s: float | None) -> dict[str, Lease]:
        return allocator.claim_ports(spec.plugin, spec.ports, adjacent=spec.adjacent, wait=wait_s, **given)

    try:
        return claim(None)
    except HeldError as error:
        if error.holder is None or not is_proven_dead(error.holder, allocator.session.host):
            if not spec.wait_s:
                raise
            return claim(spec.wait_s)
    except AllocatorError:
        if not spec.wait_s:
            raise
        return claim(spec.wait_s)
    for worker in workers:
        dead = [one for one in allocator.leases(org=worker.org, plugin=worker.plugin) if one.worker == worker]
        if dead:
            allocator.release(claim_over_the_dead(allocator, worker.plugin, spec.wait_s, **given))
    return claim(spec.wait_s)
