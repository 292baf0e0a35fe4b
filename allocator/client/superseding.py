"""A worker's lease whose process is proven dead is taken over at once, instead of after its TTL.

A supervisor that was killed and is started again finds its worker's lease still live, and has lost its token. The
lease names its processes by pid, start time, boot and namespaces: only when every one of them is proven dead on this
very host and boot may the claim supersede it. Doubt counts as alive: that costs a TTL; the other error costs a
running worker its port. A lease of another host is never superseded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Unpack

from allocator.kernel.processes import ProcessIdentity, boot_id, has_variable, is_alive, namespaces
from allocator.kernel.sockets import listeners, listening_ports
from allocator.model.errors import AllocatorError, HeldError, StoreUnavailableError
from allocator.model.names import environment_names
from allocator.operations.claim import ClaimRequest, claim

if TYPE_CHECKING:
    from allocator.client.arguments import ClaimArguments
    from allocator.client.blocking import PortAllocator
    from allocator.model.leases import Lease

ORPHAN_WAIT_S = 2.0
"""How long a killed supervisor's guard may take to end the worker, whose port is still bound until then."""

_POLL_S = 0.02


def claim_over_the_dead(
    allocator: PortAllocator,
    plugin: str,
    wait: float | None,
    *,
    record: bool = False,
    **arguments: Unpack[ClaimArguments],
) -> Lease:
    """Claim as `PortAllocator.claim` does, and supersede this worker's own lease when its processes are dead.

    Raises:
        HeldError: As `claim`; also when the dead supervisor's worker still listens on the port.
    """
    try:
        return allocator.claim(plugin, record=record, **arguments)
    except HeldError as error:
        holder = error.holder
        if holder is None or not is_proven_dead(holder, allocator.session.host):
            if not wait:
                raise
        elif _has_orphan(holder):
            if not wait:
                raise HeldError(
                    f"{error}; its supervisor is dead, but its worker still listens there", holder=holder
                ) from None
        else:
            return allocator.claim(plugin, wait=wait, record=record, **arguments | {"supersede_fence": holder.fence})
    except Exception:
        if not wait:
            raise
    return allocator.claim(plugin, wait=wait, record=record, **arguments)


def end_of_an_earlier_boot(allocator: PortAllocator, lease: Lease) -> bool:
    """End a lease of this host from before the machine was started again; return whether this call did.

    Its token went with its processes. Only the machine that the pool knows by this host's name may do that: Redis
    refuses others.

    Args:
        allocator: Of that host.
        lease: As it stands in Redis.
    """
    if lease.host != allocator.session.host or not boot_id() or lease.boot in {None, boot_id()}:
        return False
    context = allocator.session.context
    request = ClaimRequest(
        pool=lease.pool, worker=lease.worker, port=lease.port, supersede_fence=lease.fence, bound_already=True
    )
    try:
        mine = allocator.run(claim(context, request))
    except StoreUnavailableError:
        raise
    except AllocatorError:  # its worker has claimed again, or the host is cordoned: then it ends by its TTL
        return False
    return allocator.release(mine)


def is_proven_dead(lease: Lease, host: str) -> bool:
    """Return whether every process that a lease names is dead, by what this host's kernel says.

    Args:
        lease: As it stands in Redis.
        host: The name of this port namespace.
    """
    here = boot_id()
    if lease.host != host or not here or lease.boot != here or not lease.namespaces:
        return False
    named = [(lease.pid, lease.pid_started), (lease.holder_pid, lease.holder_started)]
    processes = [(pid, started) for pid, started in named if pid is not None]
    if not processes or any(started is None for _, started in processes):
        return False
    theirs, ours = lease.namespaces.split("-"), namespaces().split("-")
    if theirs[0] != ours[0]:
        # Their pids mean nothing here. A host's name is one network namespace: when that is another one now, the
        # container was started again under its old name, and what ran in the former one is gone with it.
        return len(theirs) == len(ours) == 2 and theirs[1] != ours[1]
    return not any(is_alive(ProcessIdentity(pid, started or 0, here)) for pid, started in processes)


def _has_orphan(lease: Lease) -> bool:
    """Return whether the worker of a dead supervisor still listens, after some time to end it."""
    deadline = time.monotonic() + ORPHAN_WAIT_S
    while lease.port in listening_ports(lease.port, lease.port):
        if time.monotonic() >= deadline:
            name = environment_names(lease.plugin)[0]
            found = [listener.pid for listener in listeners(lease.port, lease.port)]
            return any(pid is None or has_variable(pid, name, str(lease.port)) for pid in found)
        time.sleep(_POLL_S)
    return False
