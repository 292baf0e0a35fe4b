"""`agent`: looks after this host's leases that are bound to processes, and serves the API to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.context import cli_context, report
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption  # noqa: TC001  # typer reads them
from allocator.cli.serve import LOOPBACK_NAMES, async_allocator, is_loopback, listen_address, tcp_listener
from allocator.model.errors import AllocatorError, ConfigurationError, HeldError, InvalidInputError
from allocator.model.log import ERROR
from allocator.model.names import shown
from allocator.model.owned import private_file, user_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from allocator.agent.host import HostAgent
    from allocator.cli.context import CliContext
    from allocator.client.lease_files import LeaseFiles
    from allocator.model.leases import Lease

BACKLOG = 512


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(agent)


def agent(
    socket_path: Annotated[
        str | None,
        typer.Option(
            "--socket", metavar="FILE", help="Unix socket of the API. [default: agent.sock in the state directory]"
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Serve the API on loopback as well: 127.0.0.1:8578."),
    ] = None,
    leases: Annotated[
        list[str] | None,
        typer.Option(
            "--leases",
            metavar="DIR",
            help="Renew the leases whose lease files are in this directory as well; may be repeated.",
        ),
    ] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            "--metrics-listen", metavar="HOST:PORT", help="Serve the metrics of its leases at this HOST:PORT."
        ),
    ] = None,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Renew every lease that is bound to a process of this host, and release it when the process has ended.

    Claim with --pid to bind a lease to a process. The lease is ready when a process listens on its port; with
    --label health=/health, when that path answers.

    Example: allocator agent --listen 127.0.0.1:8578
    """
    from allocator.agent.host import HostAgent
    from allocator.agent.notify import ServiceManager
    from allocator.cli.checks.rights import report_missing_rights
    from allocator.cli.logs import start_logging
    from allocator.client.counts import HolderMetrics, serve_registry

    with contextlib.ExitStack() as stack:
        at = stack.enter_context(cli_context(pool, host, redis_url, config))
        folders = _folders(at, leases)
        stack.enter_context(_only_one(at.settings.agent_lock, at.host))
        listeners = _listeners(stack, at, socket_path, listen)
        start_logging()
        manager = ServiceManager(os.environ, time.monotonic)
        core = HostAgent(at.allocator, folders, on_step=manager.beat)
        if metrics_listen is not None:
            stack.enter_context(serve_registry(metrics_listen)).register(HolderMetrics(core))
        count = core.take_over()
        application = _application(at, core, folders[0]) if listeners else None
        where = ", ".join(_shown(listener) for listener in listeners) or "no socket"
        message = f"looking after {count} leases of host {at.host}; the API is on {where}"
        report(message)
        manager.ready(message)
        report_missing_rights(at.settings)
        try:
            _run(core, application, listeners)
        finally:
            manager.stopping()


def _folders(context: CliContext, directories: list[str] | None) -> list[LeaseFiles]:
    from allocator.client.lease_files import LeaseFiles

    folders = [context.files]
    for directory in directories or []:
        try:
            folders.append(LeaseFiles.of_another(Path(directory)))
        except (OSError, ValueError):
            raise InvalidInputError(
                f"{shown(directory)} is not a directory of lease files; make or correct it"
            ) from None
    return folders


@contextlib.contextmanager
def _only_one(path: Path, host: str) -> Iterator[None]:
    """Hold the lock of this state directory's agent."""
    try:
        descriptor = private_file(path)
    except OSError as error:
        raise ConfigurationError(
            f"the agent's lock {path} cannot be made ({(error.strerror or str(error)).lower()}); make room or access "
            "there, or give another state directory with ALLOCATOR_STATE_DIR"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "?"
            raise HeldError(f"an agent (pid {pid}) looks after host {host} already") from None
        with contextlib.suppress(OSError):  # the lock is what counts: on a full disk there is no room for whose it is
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _listeners(
    stack: contextlib.ExitStack, context: CliContext, socket_path: str | None, listen: str | None
) -> list[socket.socket]:
    try:
        import fastapi  # noqa: F401  # whether it is there
        import uvicorn  # noqa: F401
    except ImportError as error:
        if socket_path or listen:
            raise ConfigurationError(
                f"the API needs the package {error.name}; install it with: pip install 'portlease[server]'"
            ) from None
        return []
    path = Path(socket_path) if socket_path else context.settings.agent_socket
    found = [stack.enter_context(_unix_listener(path))]
    stack.callback(path.unlink, missing_ok=True)
    if listen is not None:
        address, port = listen_address(listen)
        if not is_loopback(address):
            raise ConfigurationError(
                f"the agent listens on loopback only, not on {shown(address)}; 'allocator serve' serves other hosts"
            )
        found.append(stack.enter_context(tcp_listener(address, port)))
    return found


def _unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _remove_own_socket(path)  # of an agent that was killed: the lock shows that none runs
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise ConfigurationError(f"the socket {path} cannot be made ({why}); give another --socket") from None
    finally:
        os.umask(before)
    return listener


def _remove_own_socket(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(found.st_mode):
        if found.st_uid != os.geteuid():
            raise ConfigurationError(f"the socket {path} belongs to {user_name(found.st_uid)}; give another --socket")
        path.unlink()


def _shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}"


def _application(context: CliContext, core: HostAgent, files: LeaseFiles) -> FastAPI:
    """Return the API, whose claims for processes of this host the agent looks after."""
    from allocator.api.access import Access
    from allocator.api.application import create_app
    from allocator.client.counts import HolderMetrics

    access = Access(hosts=[*LOOPBACK_NAMES])
    application = create_app(async_allocator(context.settings), access=access, custody=_Custody(core, files))
    application.state.metrics.registry.register(HolderMetrics(core))
    return application


class _Custody:
    """What the API gives into the agent's care: a lease file, which the agent sees."""

    def __init__(self, core: HostAgent, files: LeaseFiles) -> None:
        self._core, self._files = core, files

    def confirm(self, lease: Lease) -> None:
        try:
            known = self._files.load(lease.pool, lease.host, lease.port)
            if known and _shown_by_holder(known) == _shown_by_holder(lease):
                return
            self._files.save(lease)
        except AllocatorError as error:
            report(str(error), level=ERROR)
        self._core.look()

    def forget(self, lease: Lease) -> None:
        try:
            self._files.remove(lease)
        except AllocatorError as error:
            report(str(error), level=ERROR)
        self._core.look()


def _shown_by_holder(lease: Lease) -> tuple[object, ...]:
    """Return all of a lease that a heartbeat does not change."""
    return lease.token, lease.fence, lease.state, lease.ttl_ms, lease.holder_fields()


def _run(core: HostAgent, application: FastAPI | None, listeners: list[socket.socket]) -> None:
    """Run until a signal: the core in the main thread alone, or beside the server."""
    if application is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: core.stop())
        core.run()
        return
    from allocator.api.server import run_server

    failures: list[BaseException] = []

    def renew_leases() -> None:
        try:
            core.run()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=renew_leases, name="allocator-agent")
    thread.start()
    try:
        run_server(application, *listeners)
    finally:
        core.stop()
        thread.join()
    if failures:
        raise failures[0]
