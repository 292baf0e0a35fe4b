"""What to run: one worker and how it is looked after, as a value that is complete before anything is claimed."""

from __future__ import annotations

import contextlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from allocator.kernel.processes import find_program
from allocator.model.errors import InvalidInputError
from allocator.model.log import INFO
from allocator.model.names import shown
from allocator.model.values import Value, field
from allocator.operations.attempt import MAX_DECLINES
from allocator.supervisor.groups import CommandError
from allocator.supervisor.restarts import RestartMode
from allocator.supervisor.templates import check_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from allocator.client.session import ClaimArguments
    from allocator.model.leases import Lease

DEFAULT_MAX_RESTARTS = 10
"""With full jitter from 0.5 s to 30 s a crash loop is given up after about a minute."""

LONGEST_SHEBANG = 256
"""As much of a script's first line as the kernel reads. Source: execve(2)."""


class Reporter(Protocol):
    """Prints one line for the person who watches."""

    def __call__(self, line: str, lease: Lease | None = None, *, level: int = INFO) -> None:
        """Report it; `lease` is what it is about, `level` one of the levels of `logging`."""
        ...


def report_nothing(line: str, lease: Lease | None = None, *, level: int = INFO) -> None:
    """Print it to nobody."""


class ReadyWhen(StrEnum):
    """When a worker is ready."""

    LISTENS = "listens"
    STARTED = "started"


class WorkerSpec(Value, kw_only=True):
    """One worker.

    Attributes:
        plugin: The worker's plugin.
        claim: What its port is claimed with.
        wait_s: For how long to wait for a port when none is free, in seconds.
        command: The arguments of its command, templates included.
        environment: What its environment starts from.
        ports: The names of its ports when it has several, its own first; empty for one.
        contiguous: Whether they have to follow each other.
        directory: Where it runs, or None for the supervisor's directory.
        port_argument: An option that is added to the command with the port as its value, or None.
        pass_token: Whether the environment has the lease's token.
        output_in_events: Whether the last line of its standard error goes into its lease and the events.
        listen: Whether the supervisor binds the port and passes the socket.
        drain_delay_s: How long its lease is `draining` before it is stopped, so that nobody is sent to it any more.
        stop_timeout_s: How long the worker has to end by itself, in seconds.
        stop_path: Where it is asked to end by `POST` first, or None.
        health_path: The path that shows how it is, or None to be content with a connection.
        health_interval_s: How often it is asked once it is ready.
        give_up_after_s: After how long without a good answer it is started again; None for never.
        ready: When it is ready: it listens and answers, or it has run for a second.
        start_timeout_s: After how long without a listener it is started again; None for never.
        restart: After which ends it is started again.
        max_restarts: How many times in a row.
        max_declines: How many ports may turn out to be in use, one after the other.
        captured: Which of its streams the supervisor reads: `stderr`, for several workers `stdout` as well.
    """

    plugin: str
    claim: ClaimArguments
    command: Sequence[str]
    environment: Mapping[str, str]
    wait_s: float | None = None
    ports: tuple[str, ...] = ()
    contiguous: bool = False
    directory: Path | None = None
    port_argument: str | None = None
    pass_token: bool = False
    output_in_events: bool = True
    listen: bool = False
    drain_delay_s: float = 2.0
    stop_timeout_s: float = 5.0
    stop_path: str | None = None
    health_path: str | None = None
    health_interval_s: float = 5.0
    give_up_after_s: float | None = 60.0
    ready: ReadyWhen = ReadyWhen.LISTENS
    start_timeout_s: float | None = 60.0
    restart: RestartMode = RestartMode.ON_FAILURE
    max_restarts: int = DEFAULT_MAX_RESTARTS
    max_declines: int = MAX_DECLINES
    captured: frozenset[str] = field(default=frozenset({"stderr"}))

    @property
    def explicit_port(self) -> bool:
        """Whether only one port will do."""
        return self.claim.get("port") is not None


def check_spec(spec: WorkerSpec) -> None:
    """Check a worker before anything is claimed for it.

    Raises:
        InvalidInputError: When a template has an unknown name, or a path or a directory cannot be right.
        CommandError: When the command does not exist or cannot be executed.
    """
    for _, check in CHECKS:
        check(spec)


def _check_command(spec: WorkerSpec) -> None:
    if not spec.command:
        raise InvalidInputError("there is no command to run; give one after --")
    check_command(spec.command, spec.ports)


def _check_port_argument(spec: WorkerSpec) -> None:
    check_command([spec.port_argument or ""], spec.ports)


def _check_ports(spec: WorkerSpec) -> None:
    if spec.explicit_port and spec.ports:
        raise InvalidInputError("several ports cannot be one explicit port; omit the port or the names of the ports")


def _check_contiguous(spec: WorkerSpec) -> None:
    if spec.contiguous and not spec.ports:
        raise InvalidInputError("only several ports can be contiguous; name them, for example http,debug")


def _check_health(spec: WorkerSpec) -> None:
    if spec.health_path is not None:
        check_path("health", spec.health_path)


def _check_ready(spec: WorkerSpec) -> None:
    if spec.ready is ReadyWhen.STARTED and spec.health_path is not None:
        raise InvalidInputError(
            "a worker that is ready when it has started is not asked how it is; omit the health path or --ready started"
        )


def _check_stop_path(spec: WorkerSpec) -> None:
    if spec.stop_path is not None:
        check_path("stop", spec.stop_path)


def _check_directory(spec: WorkerSpec) -> None:
    if spec.directory is not None and not spec.directory.is_dir():
        raise InvalidInputError(f"{shown(str(spec.directory))} is not a directory to run in; make or correct it")


def _check_listen(spec: WorkerSpec) -> None:
    if spec.listen and not sys.platform.startswith(("linux", "darwin", "freebsd")):
        raise InvalidInputError("sockets cannot be passed on this system; omit --listen-fd")


def _check_program(spec: WorkerSpec) -> None:
    name = spec.command[0]
    if "{" in name:
        return
    here = spec.directory if spec.directory is not None and "/" in name else None
    path = str(here / name) if here else name
    found = find_program(path, spec.environment.get("PATH"))
    if found is None:
        with contextlib.suppress(OSError):  # a name that no file system takes
            if name and Path(path).exists():
                raise CommandError(f"the command {shown(name)} cannot be run; make it executable", 126)
        raise CommandError(f"the command {shown(name)} does not exist; check its name and PATH", 127)
    interpreter = _interpreter(Path(found))
    if interpreter is not None and find_program(interpreter) is None:
        raise CommandError(
            f"the command {shown(name)} cannot be run: its interpreter {shown(interpreter)} does not exist; "
            "correct its first line",
            127,
        )


CHECKS: tuple[tuple[str, Callable[[WorkerSpec], None]], ...] = (
    ("command", _check_command),
    ("port_arg", _check_port_argument),
    ("ports", _check_ports),
    ("contiguous", _check_contiguous),
    ("health", _check_health),
    ("ready", _check_ready),
    ("stop_path", _check_stop_path),
    ("directory", _check_directory),
    ("listen_fd", _check_listen),
    ("command", _check_program),
)
"""What is checked of a worker, in order, each with the field that is wrong when it fails."""


def _interpreter(program: Path) -> str | None:
    """Return the interpreter that the first line of a script names, or None for another program."""
    try:
        with program.open("rb") as file:
            head = file.read(LONGEST_SHEBANG)
    except OSError:  # it may be run and not read
        return None
    parts = head.partition(b"\n")[0][2:].split() if head.startswith(b"#!") else []
    return os.fsdecode(parts[0]) if parts else None


def check_path(what: str, path: str) -> str:
    """Return the path of a request when it can stand in one.

    Raises:
        InvalidInputError: When it does not begin with `/` or has a namespace, a control or another non-ASCII character.
    """
    if path.startswith("/") and path.isascii() and path.isprintable() and " " not in path:
        return path
    raise InvalidInputError(f"{shown(path)} is not a {what} path; give one that begins with /, for example /health")
