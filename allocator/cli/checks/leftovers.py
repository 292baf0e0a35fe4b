"""What commands and servers left in the state directory when they were killed: files and sockets that mean nothing."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from allocator.cli.checks.findings import Finding
from allocator.model.errors import AllocatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease

OLD_S = 300.0
"""A claim that waits longer in its first file than this was killed: no `--wait` of a hook is so patient."""


def check_lease_files(context: CliContext, leases: dict[int, Lease]) -> Iterator[Finding]:
    """Look for lease files of this host whose lease has ended or is another worker's.

    Args:
        context: What the command works with.
        leases: The live leases of the pool on this host, by port.
    """
    for saved in saved_leases(context):
        live = leases.get(saved.port)
        if live is None or live.worker != saved.worker:
            what = f"a lease file is left of {saved.worker} on port {saved.port}"
            yield Finding("leftover", what, f"allocator release {saved.port}")


def saved_leases(context: CliContext) -> list[Lease]:
    """Return the leases of this pool and host that have a file; a file that is none is left to `check_files`."""
    found = []
    for name in sorted(context.files.scan() or {}):
        try:
            lease = context.files.read(name)
        except AllocatorError:
            continue
        if lease is not None and (lease.pool, lease.host) == (context.pool, context.host):
            found.append(lease)
    return found


def check_files(context: CliContext) -> Iterator[Finding]:
    """Look for files that cannot be read as leases, for temporary ones, and for claims that nobody finished."""
    for name in sorted(context.files.scan() or {}):
        try:
            context.files.read(name)
        except AllocatorError as error:
            what = str(error).rpartition("; ")[0]
            yield Finding("leftover", what, f"rm {shlex.quote(str(context.files.directory / name))}")
    for path in _old(context.files.directory, ".new-*"):
        yield Finding("leftover", f"{path} is the half of a file whose writer was killed", _remove(path))
    for path in _old(context.files.directory, ".claim@*"):
        what = f"a claim was killed before it was finished: {path.name.removeprefix('.claim@').replace('@', ' ')}"
        yield Finding("leftover", what, f"claim again for the same worker, which finishes it, or {_remove(path)}")


def check_embedded_server(context: CliContext) -> Iterator[Finding]:
    """Look for the socket of an embedded server that runs no more; needless when this command talks to it."""
    from allocator.store.embedded import EmbeddedServer

    server = EmbeddedServer(context.settings.state_dir)
    if context.settings.redis_url and server.socket.exists() and server.status() is None:
        what = f"the socket {server.socket} is left of an embedded server that was killed"
        yield Finding("leftover", what, "allocator embedded stop")


def _old(directory: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(directory.glob(pattern)):
        try:
            age_s = time.time() - path.stat().st_mtime
        except OSError:
            continue  # it was finished meanwhile
        if age_s > OLD_S:
            yield path


def _remove(path: Path) -> str:
    return f"rm {shlex.quote(str(path))}"
