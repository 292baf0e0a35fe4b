"""Whether leases that are bound to processes have somebody who renews them, and whether the agent answers."""

from __future__ import annotations

import fcntl
import http.client
import os
import socket
from typing import TYPE_CHECKING

from allocator.agent.bound import process_of
from allocator.cli.checks.findings import Finding
from allocator.cli.checks.leftovers import saved_leases
from allocator.cli.context import report
from allocator.kernel.identity import is_alive
from allocator.kernel.processes import all_pids, command_arguments
from allocator.model.errors import AllocatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease

ANSWER_S = 2.0
RENEWED_WITHIN = 0.6
"""An agent renews after 0.45 of the TTL: a lease with less than 0.4 of it left has none, or a late one."""


def check_agent(context: CliContext) -> Iterator[Finding]:
    """Ask the agent of this state directory how it is, and look for what a killed one left."""
    path = context.settings.agent_socket
    pid = agent_pid(context.settings.agent_lock)
    if not path.is_socket():
        return
    if pid is None:
        yield Finding(
            "leftover", f"the socket {path} is left of an agent that was killed", f"allocator agent, or rm {path}"
        )
    elif not _answers(path):
        what = f"the agent (pid {pid}) does not answer on {path} within {ANSWER_S:g} s"
        yield Finding("agent", what, f"kill {pid} && allocator agent  (it takes the leases over)")


def check_bound_leases(context: CliContext, leases: dict[int, Lease], now: float) -> Iterator[Finding]:
    """Look for leases that are bound to processes while no agent runs.

    Args:
        context: What the command works with.
        leases: The live leases of the pool on this host, by port.
        now: The time, in Unix seconds by the server's clock.
    """
    if agent_pid(context.settings.agent_lock) is not None:
        return
    for saved in saved_leases(context):
        live = leases.get(saved.port)
        if saved.pid is None or live is None or live.worker != saved.worker or _is_renewed(live, now):
            continue
        about = f"port {saved.port} of {saved.worker} is bound to process {saved.pid}"
        if _has_ended(saved):
            yield Finding("agent", f"{about}, which has ended", f"allocator release {saved.port}")
        else:
            yield Finding("agent", f"{about}, and no agent renews it", "allocator agent")


def warn_without_agent(context: CliContext) -> None:
    """Report that nobody renews the leases of processes: no agent runs for this state directory."""
    if agent_pid(context.settings.agent_lock) is None and not _is_named_by_an_agent(context.files.directory):
        report("no agent runs here, so nobody renews this lease: start one with 'allocator agent', or see doctor")


def _is_named_by_an_agent(leases: Path) -> bool:
    """Return whether an agent of another user looks after a folder of lease files, as its command line shows."""
    return any(
        os.fspath(leases) in arguments for arguments in map(command_arguments, all_pids()) if "--leases" in arguments
    )


def agent_pid(lock: Path) -> int | None:
    """Return the pid of the agent that holds a lock file, 0 when the file does not tell, or None when none runs."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        written = os.pread(descriptor, 16, 0).strip()
        return int(written) if written.isdigit() else 0
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _answers(path: Path) -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=ANSWER_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(ANSWER_S)
    try:
        connection.sock.connect(os.fspath(path))
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_renewed(lease: Lease, now: float) -> bool:
    """Return whether somebody renews a lease: an agent with another state directory, or `renew --every`."""
    ttl_s = lease.ttl_ms / 1_000
    confirmed_at = lease.expires_at - ttl_s
    was_renewed = confirmed_at > lease.granted_at + ttl_s * (1 - RENEWED_WITHIN)
    return was_renewed and now - confirmed_at < ttl_s * RENEWED_WITHIN


def _has_ended(lease: Lease) -> bool:
    try:
        process = process_of(lease)
    except AllocatorError:
        return False  # it is not known from here
    return process is None or not is_alive(process)
