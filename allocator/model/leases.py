"""The lease as a value: what a holder knows, what a reader sees, and how both are written as JSON.

Only the holder's own copy has the token: it is left out of `repr` and of every listing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from allocator.model.states import LeaseState
from allocator.model.values import Value, declared_fields, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from allocator.model.names import WorkerId


MAX_ERROR_LENGTH = 500
_OF_THE_HOLDER: dict[str, bool] = {"process": False}
_OF_A_PROCESS: dict[str, bool] = {"process": True}
"""The metadata of fields that the holder sets; some of them name processes."""


class Lease(Value, kw_only=True):
    """The right of a worker to a host:port until a time.

    Attributes:
        pool: The pool of the port.
        host: The machine, or the container with a network namespace of its own.
        port: 1-65535.
        worker: Who the lease is for.
        state: Its state; see `LeaseState`.
        fence: The fencing token: grows with every grant in the pool.
        ttl_ms: How long the lease lives without a heartbeat, in milliseconds.
        granted_at: When it was granted, in Unix seconds by the server's clock.
        expires_at: When it ends without a renewal, in Unix seconds by the server's clock.
        pid: The process that it is bound to (the worker), or None.
        pid_started: When that process started, in clock ticks since boot, or None when it was not seen.
        holder_pid: The process that looks after the worker (its supervisor), or None.
        holder_started: When that one started.
        boot: The boot of the machine on which these processes run, or None.
        namespaces: Their process and network namespaces as `<pid>-<net>`, or None.
        restarts: How often the worker was started again under this lease.
        started_at: When the worker was started last, in whole Unix seconds by its supervisor's clock, or None.
        last_error: Why the worker ended or failed last, in one line of at most 500 characters, or None.
        labels: `name=value` pairs of the holder.
        token: The proof of holding (32 hexadecimal digits), or None in a reader's copy.
        deadline: The end of the lease for its holder, in seconds of the holder's monotonic clock: the TTL, counted from
            just before the last confirmed request was sent; None in a reader's copy.
        process: The pid of the process that claimed it; None in a reader's copy and in one from a lease file. A forked
            child does not hold its parent's leases, although it has copies of them.
    """

    pool: str
    host: str
    port: int
    worker: WorkerId
    state: LeaseState = LeaseState.STARTING
    fence: int
    ttl_ms: int
    granted_at: float
    expires_at: float
    pid: int | None = field(default=None, metadata=_OF_A_PROCESS)
    pid_started: int | None = field(default=None, metadata=_OF_A_PROCESS)
    holder_pid: int | None = field(default=None, metadata=_OF_A_PROCESS)
    holder_started: int | None = field(default=None, metadata=_OF_A_PROCESS)
    boot: str | None = field(default=None, metadata=_OF_A_PROCESS)
    namespaces: str | None = field(default=None, metadata=_OF_A_PROCESS)
    restarts: int = field(default=0, metadata=_OF_THE_HOLDER)
    started_at: int | None = field(default=None, metadata=_OF_THE_HOLDER)
    last_error: str | None = field(default=None, metadata=_OF_THE_HOLDER)
    labels: Mapping[str, str] = field(default_factory=dict, metadata=_OF_THE_HOLDER)
    token: str | None = field(default=None, repr=False, compare=False)
    deadline: float | None = field(default=None, repr=False, compare=False)
    process: int | None = field(default=None, repr=False, compare=False)

    @property
    def org(self) -> str:
        """The organisation's id."""
        return self.worker.org

    @property
    def plugin(self) -> str:
        """The plugin's name."""
        return self.worker.plugin

    @property
    def instance(self) -> int:
        """Which worker of this plugin and organisation it is."""
        return self.worker.instance

    @property
    def starts_since(self) -> float | None:
        """The time at which its worker began to start, in Unix seconds; None in another state."""
        if self.state is not LeaseState.STARTING:
            return None
        return self.granted_at if self.started_at is None else self.started_at

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    def holder_fields(self) -> dict[str, Any]:
        """Return the fields that the holder sets, by name (`HOLDER_FIELDS`)."""
        return {name: getattr(self, name) for name in HOLDER_FIELDS}

    def as_json(self, *, with_token: bool = False) -> dict[str, object]:
        """Return the object that `--format json` prints; `expires_at` is RFC 3339 in UTC, `ttl_s` seconds.

        Args:
            with_token: Whether the object contains the token.
        """
        shown: dict[str, object] = {
            "pool": self.pool,
            "host": self.host,
            "port": self.port,
            "org": self.org,
            "plugin": self.plugin,
            "instance": self.instance,
            "state": str(self.state),
            "fence": self.fence,
            "ttl_s": self.ttl_ms / 1_000,
            "granted_at": written_time(self.granted_at),
            "expires_at": written_time(self.expires_at),
            "pid": self.pid,
            "restarts": self.restarts,
            "started_at": None if self.started_at is None else written_time(self.started_at),
            "last_error": self.last_error,
            "labels": dict(self.labels),
        }
        if with_token:
            shown["token"] = self.token
        return shown


_reported = [one for one in declared_fields(Lease) if one.metadata]
HOLDER_FIELDS = tuple(one.name for one in _reported)
"""The fields that a holder sets; scripts store them and never read them."""

PROCESS_FIELDS = tuple(one.name for one in _reported if one.metadata["process"])
"""Of these, the ones that name processes."""

NUMBER_FIELDS = frozenset(one.name for one in _reported if str(one.type).startswith("int"))
TEXT_FIELDS = frozenset(one.name for one in _reported if str(one.type).startswith("str"))
"""Of these, the ones with whole numbers and the ones with text."""


def error_line(text: str) -> str:
    """Return `text` as `last_error` has it: printable, on one line, its last 500 characters."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= MAX_ERROR_LENGTH else "…" + line[1 - MAX_ERROR_LENGTH :]


def written_time(unix_seconds: float) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds: `2026-01-31T09:30:00.000Z`."""
    moment = datetime.fromtimestamp(unix_seconds, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1_000:03d}Z"
