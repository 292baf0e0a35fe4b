"""The identity of this host and of processes: values that show whether it is the same one as before.

A host is a network namespace of a machine in one boot; a process is a pid and its start time, so that a pid used again
is not taken for the old one. The rule of this file: when the kernel will not tell whether a process lives, it lives.
Taking a running worker for dead gives its port away; taking a dead one for alive costs a TTL.
"""

from __future__ import annotations

import os
import re
import socket
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from allocator.model.encodings import sha256
from allocator.model.errors import ConfigurationError
from allocator.model.names import MAX_NAME_LENGTH, check_name
from allocator.model.values import Value

PROC = Path("/proc")
_DEAD_STATES = frozenset("ZXx")
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_SALT = b"portlease host identity 1"
"""machine-id(5) asks programs not to show the id itself, but a hash of it with a key of their own."""


class HostIdentity(Value):
    """The identity of a host; no field has spaces, and `-` stands for one that the system does not show.

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
    """Return the identity of the host on which this process runs."""
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


class ProcessIdentity(Value):
    """One process, distinguished from every later one with its pid.

    Attributes:
        pid: Its number.
        start_time: When it started, in clock ticks since boot (hundredths of a Unix second where there is no `/proc`).
        boot_id: Which boot of this machine.
    """

    pid: int
    start_time: int
    boot_id: str


class ProcessRow(NamedTuple):
    """A row of the process table.

    Attributes:
        alive: Whether it runs; a zombie does not.
        parent: The pid of its parent.
        group: Its process group.
        start_time: See `ProcessIdentity`.
    """

    alive: bool
    parent: int
    group: int
    start_time: int


@cache
def boot_id() -> str:
    """Return this boot's identity, or an empty string where the kernel does not tell."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def namespaces() -> str:
    """Return this process's pid and network namespaces as `<pid>-<net>`, or an empty string where there are none.

    A pid means nothing to a process of another pid namespace, which may not see the one that it names.
    """
    try:
        pid, net = ((PROC / "self/ns" / name).stat().st_ino for name in ("pid", "net"))
    except OSError:
        return ""
    return f"{pid}-{net}"


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a living process, or None when there is none (a zombie is dead).

    Raises:
        ConfigurationError: When there is such a process, but `/proc` hides it from this user (`hidepid`).
    """
    status = status_of(pid)
    if status is None:
        if _exists(pid):
            raise ConfigurationError(
                f"process {pid} is hidden from this user (/proc is mounted with hidepid); "
                "run as the user of that process, or join the group that may see it"
            )
        return None
    return ProcessIdentity(pid, status.start_time, boot_id()) if status.alive else None


def is_alive(identity: ProcessIdentity) -> bool:
    """Return whether this very process still lives; True as well when it is hidden from this user."""
    if identity.boot_id != boot_id():
        return False
    status = status_of(identity.pid)
    if status is None:
        return _exists(identity.pid)
    return status.alive and status.start_time == identity.start_time


def start_time_of(pid: int) -> int | None:
    """Return when a process started, a zombie as well (see `ProcessIdentity`), or None when there is none."""
    row = status_of(pid)
    return row.start_time if row else None


def proc_text(pid: int, name: str) -> str:
    """Return what `/proc` has under a name for a process.

    Raises:
        OSError: When there is no such process, or it may not be seen.
    """
    return (PROC / str(pid) / name).read_text(errors="replace").removesuffix("\n")


def status_of(pid: int) -> ProcessRow | None:
    """Return the row of a process, or None when there is none or it is hidden."""
    try:
        line = proc_text(pid, "stat")
    except OSError:
        return None if _has_proc() else _status_by_psutil(pid)
    # From the third field (state) on: the second, the name, may hold spaces and brackets. Source: proc_pid_stat(5).
    fields = line[line.rindex(")") + 2 :].split()
    # A process whose main thread has ended looks like a zombie while its other threads run on.
    alive = fields[0] not in _DEAD_STATES or int(fields[17]) > 1
    return ProcessRow(alive, int(fields[1]), int(fields[2]), int(fields[19]))


@cache
def _has_proc() -> bool:
    return (PROC / "self/stat").exists()


def _status_by_psutil(pid: int) -> ProcessRow | None:
    import psutil

    try:
        process = psutil.Process(pid)
        alive = process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
        return ProcessRow(alive, process.ppid(), os.getpgid(pid), int(process.create_time() * 100))
    except (psutil.Error, OSError, ValueError):
        return None


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    # It answers to a signal: it was started this instant, or it is hidden.
    return True
