"""The processes that belong to a worker whose command is a wrapper: `npx tsx`, `npm start`, `sh -c`.

A hook binds a lease to the wrapper. What listens is a descendant of it or, when something between them has ended, a
process of its group or session; that one may live on when the wrapper has died, and the lease then goes with it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from allocator.kernel.identity import ProcessIdentity, boot_id, identify, namespaces
from allocator.kernel.processes import process_table, with_descendants
from allocator.kernel.sockets import Listener, listeners
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from allocator.model.leases import Lease


class ProcessFamily(Value):
    """A process with its group and session, as they were when it lived.

    Attributes:
        pid: The process.
        group: Its process group.
        session: Its session.
    """

    pid: int
    group: int
    session: int

    @classmethod
    def of(cls, pid: int) -> ProcessFamily:
        """Return the family of a process; one that has ended is taken for the leader of its group and session."""
        try:
            return cls(pid, os.getpgid(pid), os.getsid(pid))
        except OSError:
            return cls(pid, pid, pid)

    def members(self) -> list[int]:
        """Return the pids of the process's descendants and of its group and session."""
        found = set(with_descendants(self.pid))
        return [*found, *(pid for pid in process_table() if pid not in found and self.includes(pid))]

    def includes(self, pid: int) -> bool:
        """Return whether a process is in the group or session."""
        try:
            return os.getpgid(pid) == self.group or os.getsid(pid) == self.session
        except OSError:
            return False

    def listener(self, port: int) -> ProcessIdentity | None:
        """Return the process of the group or session that listens on a port, or None."""
        pids = (one.pid for one in listeners(port, port) if one.pid)
        return next((identify(pid) for pid in pids if self.includes(pid)), None)


def is_stranger(lease: Lease | None, listener: Listener) -> bool:
    """Return whether a listener on a leased port of this host is none of the leased worker's processes."""
    if lease is None or lease.pid is None or listener.pid is None:
        return False
    if lease.boot not in {None, boot_id()} or lease.namespaces not in {None, namespaces()}:
        return False  # its processes are not seen from here
    if lease.holder_pid is None:  # the agent's: the lease is bound to a hook's wrapper
        return listener.pid not in ProcessFamily.of(lease.pid).members()
    table = process_table()
    row, leased = table.get(listener.pid), table.get(lease.pid)
    in_group = row is not None and leased is not None and row.group == leased.group
    return not in_group and listener.pid not in with_descendants(lease.pid, lease.holder_pid)


def ports_of_strangers(first: int, last: int, leases: Mapping[int, Lease]) -> set[int]:
    """Return the ports of a range on which a program listens that has no lease, alone or beside the leased worker.

    Args:
        first: The first port.
        last: The last one.
        leases: The live leases of this host, by port.
    """
    return {one.port for one in listeners(first, last) if one.port not in leases or is_stranger(leases[one.port], one)}
