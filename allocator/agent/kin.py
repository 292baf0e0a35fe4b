"""The processes that belong to a worker whose command is a wrapper: `npx tsx`, `npm start`, `sh -c`.

A hook binds a lease to the wrapper. What listens is a descendant of it or, when something between them has ended, a
process of its group or session; that one may live on when the wrapper has died, and the lease then goes with it.
"""

from __future__ import annotations

import os

from allocator.kernel.identity import ProcessIdentity, identify
from allocator.kernel.processes import process_table, with_descendants
from allocator.kernel.sockets import listeners
from allocator.model.values import Value


class Kin(Value):
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
    def of(cls, pid: int) -> Kin:
        """Return those of a process; of one that has ended those that it led, if it led any."""
        try:
            return cls(pid, os.getpgid(pid), os.getsid(pid))
        except OSError:
            return cls(pid, pid, pid)

    def members(self) -> list[int]:
        """Return the descendants of the process, and who is in its group or session."""
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
