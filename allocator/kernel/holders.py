"""What this host's kernel knows of the processes of a lease: whether they live, are proven dead, or left an orphan.

A supervisor that was killed and is started again finds its worker's lease still live, and has lost its token. The lease
names its processes by pid, start time, boot and namespaces: only when every one of them is proven dead on this very
host and boot may a claim supersede it. Doubt counts as alive: that costs a TTL; the other error costs a running worker
its port. A lease of another host is never superseded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.kernel.identity import ProcessIdentity, boot_id, is_alive, namespaces
from allocator.kernel.processes import has_variable
from allocator.kernel.socket_tables import listening_ports
from allocator.kernel.sockets import listeners
from allocator.model.names import environment_names
from allocator.operations.steps import Judgement, Verdict

if TYPE_CHECKING:
    from allocator.model.leases import Lease


def judge(lease: Lease, host: str) -> Judgement:
    """Return what is known of the processes of a lease.

    Args:
        lease: As it stands in Redis.
        host: The name of this host.
    """
    if not is_proven_dead(lease, host):
        return Judgement(Verdict.ALIVE)
    if lease.port not in listening_ports(lease.port, lease.port):
        return Judgement(Verdict.DEAD)
    return Judgement(Verdict.ORPHAN if is_orphaned(lease) else Verdict.LISTENING)


def started_as(lease: Lease) -> bool:
    """Return whether the process that listens on the port of a lease was started with that port as its plugin's."""
    found = [listener.pid for listener in listeners(lease.port, lease.port)]
    return any(
        pid is not None and has_variable(pid, name, str(lease.port))
        for pid in found
        for name in environment_names(lease.plugin)
    )


def is_orphaned(lease: Lease) -> bool:
    """Return whether the worker of a lease listens on its port, or somebody who cannot be seen does."""
    name = environment_names(lease.plugin)[0]
    found = [listener.pid for listener in listeners(lease.port, lease.port)]
    return any(pid is None or has_variable(pid, name, str(lease.port)) for pid in found)


def is_of_this_kernel(lease: Lease) -> bool:
    """Return whether the processes of a lease run in this boot and these namespaces, whatever the host is called."""
    return bool(boot_id()) and lease.boot == boot_id() and lease.namespaces == namespaces()


def is_supervised(lease: Lease) -> bool:
    """Return whether a supervisor looks after the worker of a lease in this kernel: then its state is true."""
    pid, started = lease.holder_pid, lease.holder_started
    if pid is None or started is None or not is_of_this_kernel(lease):
        return False
    return is_alive(ProcessIdentity(pid, started, boot_id()))


def is_proven_dead(lease: Lease, host: str) -> bool:
    """Return whether every process that a lease names is dead, by what this host's kernel shows.

    Args:
        lease: As it stands in Redis.
        host: The name of this host.
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
