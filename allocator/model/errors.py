"""The error tree. Each error states what happened, to what, and what to do; it carries its data and its exit code.

Nothing here formats a traceback or a secret: messages are made of names, ports and times only.
Exit codes follow sysexits.h where it has a code for the case.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_HELD = 73
EXIT_EXHAUSTED = 75
EXIT_CONFIGURATION = 78


MAX_MESSAGE = 1_500
"""Longest message in characters: the longest sentence of ours, with the longest names twice in it."""


def printable(line: str) -> str:
    """Return a line without what would move a terminal's cursor or end it: another program may have written it."""
    return line if line.isprintable() else "".join(one if one.isprintable() else "?" for one in line)


def on_one_line(message: str) -> str:
    """Return a message as one printable line; a path or another program's message may contain any character."""
    return printable(message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…")


class AllocatorError(Exception):
    """Base of every error that portlease raises on purpose.

    Attributes:
        exit_code: What a command that ends with this error exits with.
        host: The host that it concerns, or None.
        port: The port that it concerns, or None.
        worker: The worker (`org/plugin#instance`) that it concerns, or None.
        retry_after: Seconds after which trying again may succeed, or None when that is unknown.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        host: str | None = None,
        port: int | None = None,
        worker: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(on_one_line(message))
        self.host = host
        self.port = port
        self.worker = worker
        self.retry_after = retry_after


class InvalidInputError(AllocatorError):
    """A name, port, duration or other argument that cannot be right; nothing was changed."""

    exit_code = EXIT_USAGE


class ConfigurationError(AllocatorError):
    """A setting, file, server or key that an administrator must fix before anything can work."""

    exit_code = EXIT_CONFIGURATION


class StoreUnavailableError(AllocatorError):
    """Redis did not answer in time; whether the last command took effect is unknown.

    Every script is idempotent under its token, so the same call may simply be made again.
    """

    exit_code = EXIT_UNAVAILABLE


class DatabaseUnavailableError(AllocatorError):
    """The database did not answer in time, or is locked; a transaction either took effect as a whole or not at all.

    What is written is fenced and compared first, so the same call may simply be made again.
    """

    exit_code = EXIT_UNAVAILABLE


class LeaseInTheWay(Protocol):
    """What a `HeldError` shows of a lease: a `Lease` has all of it, and this module must not know that one."""

    @property
    def worker(self) -> Any:  # noqa: ANN401  # a WorkerId, of a module that raises these errors
        """Who has it."""

    @property
    def host(self) -> str:
        """On which host."""

    @property
    def port(self) -> int:
        """Which port."""

    @property
    def fence(self) -> int:
        """Its fencing token."""

    @property
    def expires_at(self) -> float:
        """When it ends without a renewal, in Unix seconds."""


class HeldError(AllocatorError):
    """The port, the worker or the host name is held by someone else.

    Attributes:
        holder: The lease that stands in the way (without its token), or None when a stranger has the port.
    """

    exit_code = EXIT_HELD

    def __init__(self, message: str, *, holder: LeaseInTheWay | None = None, **data: object) -> None:
        super().__init__(message, **data)  # type: ignore[arg-type]  # the base's keywords, passed through
        self.holder = holder


class HostConflictError(HeldError):
    """Another machine or network namespace has live leases under this host's name."""


class LeaseLostError(HeldError):
    """The lease is no longer this holder's: it ended, or a newer lease has the port or the worker."""


class PortRefusedError(HeldError):
    """The kernel refused a granted port (somebody else has it bound); the lease was declined."""


class ExhaustedError(AllocatorError):
    """No port of the pool can be had on this host now; `retry_after` states when the next one can be free."""

    exit_code = EXIT_EXHAUSTED


class LimitError(ExhaustedError):
    """A limit of the pool is reached: for the organisation, the plugin, or the instances of both.

    Attributes:
        kind: Which limit: `org`, `plugin` or `instances`.
        holders: Some of the workers that count, as `org/plugin#instance`.
    """

    def __init__(self, message: str, *, kind: str = "", holders: tuple[str, ...] = (), **data: object) -> None:
        super().__init__(message, **data)  # type: ignore[arg-type]  # the base's keywords, passed through
        self.kind = kind
        self.holders = holders


class CordonedError(ExhaustedError):
    """The host is cordoned or draining and gives out no new ports."""


class NoWorkerError(AllocatorError):
    """No worker of a service is ready to be sent requests."""

    exit_code = EXIT_EXHAUSTED


class RecoveringError(ExhaustedError):
    """A pool whose ports are unique over the fleet grants none yet: Redis may have forgotten some of its grants."""


class PoolMissingError(ConfigurationError):
    """The pool is not defined in this Redis and is not a built-in one."""
