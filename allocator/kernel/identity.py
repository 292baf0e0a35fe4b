"""Which host this is: a name that means one port namespace, and what proves that it is the same one as before."""

from __future__ import annotations

import os
import re
import socket
import time
from functools import cache
from pathlib import Path

from allocator.kernel.processes import boot_id, start_time_of
from allocator.model.encodings import sha256
from allocator.model.names import MAX_NAME_LENGTH, check_name
from allocator.model.values import Value

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_SALT = b"portlease host identity 1"
"""machine-id(5) asks that the id is not shown as it is, but hashed with a key of the application."""


class HostIdentity(Value):
    """One port namespace; each field is without spaces, `-` where the system does not tell.

    Attributes:
        machine: A hash of the machine's id.
        boot: This boot of it.
        netns: The network namespace.
    """

    machine: str
    boot: str
    netns: str

    def __str__(self) -> str:
        return f"{self.machine} {self.boot} {self.netns}"


@cache
def host_identity() -> HostIdentity:
    """Return the identity of this process's port namespace."""
    return HostIdentity(_machine(), boot_id() or "-", _netns())


def _machine() -> str:
    for path in _MACHINE_ID_FILES:
        try:
            machine_id = path.read_bytes().strip()
        except OSError:
            continue
        if machine_id and machine_id != b"uninitialized":
            return sha256(_SALT + machine_id)[:16]
    return sha256(_SALT + boot_id().encode())[:16]


def _netns() -> str:
    try:
        return str(Path("/proc/self/ns/net").stat().st_ino)
    except OSError:
        return "-"


def running_s() -> float | None:
    """Return for how many seconds this machine has run, or this container: since its process 1 started.

    None where the system does not tell. Time in suspension counts.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    started = start_time_of(1)
    # A start is known to a tick, and counts as its end: what was renewed just before is not taken for later.
    return since_boot if started is None else max(0.0, since_boot - (started + 1) / os.sysconf("SC_CLK_TCK"))


def default_host() -> str:
    """Return the host name as a valid name: other characters become hyphens; `localhost` when nothing is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:MAX_NAME_LENGTH].strip("._-")
    return check_name("host", name or "localhost")


def default_address() -> str:
    """Return the address of this host that the default route goes out from; loopback where there is no such route.

    Connecting a datagram socket asks the kernel for the route and sends nothing (the addresses are for documentation).
    """
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
