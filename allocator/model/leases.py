"""The lease as a value: what a holder knows, what a reader sees, and how both are written as JSON.

A token stands only in the holder's own copy: it is left out of `repr` and of every listing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from allocator.model.names import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of a worker to a host:port until a time.

    Attributes:
        pool: The pool that the port is of.
        host: The port namespace (a machine, or a container with its own network namespace).
        port: 1-65535.
        worker: Who the lease is for.
        state: Where it is in its life.
        fence: The fencing token: grows with every grant in the pool.
        ttl_ms: How long the lease lives without a heartbeat, in milliseconds.
        granted_at: When it was granted, in Unix seconds by the server's clock.
        expires_at: When it ends without a renewal, in Unix seconds by the server's clock.
        pid: The process that it is tied to, or None.
        labels: Free words of the holder.
        token: The proof of holding (32 hexadecimal digits), or None in a reader's copy.
        deadline: Until when the holder may be sure of it, in seconds of its own monotonic clock, counted from
            before the last confirmed request was sent; None in a reader's copy.
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
    pid: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False, compare=False)
    deadline: float | None = field(default=None, repr=False, compare=False)

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
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    def as_json(self, *, with_token: bool = False) -> dict[str, object]:
        """Return the object that `--format json` prints; `expires_at` is RFC 3339 in UTC, `ttl_s` seconds.

        Args:
            with_token: Whether the holder asked for its proof as well.
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
            "labels": dict(self.labels),
        }
        if with_token:
            shown["token"] = self.token
        return shown


def written_time(unix_seconds: float) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds: `2026-01-31T09:30:00.000Z`."""
    moment = datetime.fromtimestamp(unix_seconds, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1_000:03d}Z"
