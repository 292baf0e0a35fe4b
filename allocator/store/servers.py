"""Whether a server will do: its kind and version, its role, whether it evicts keys, whether it forgets everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

OLDEST_REDIS = (6, 2)
"""The first with `ZADD … LT` for all, `ZMSCORE` and `XADD … MAXLEN ~` trimmed as the scripts expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself; empty words where it does not tell.

    Attributes:
        kind: `redis` or `valkey`.
        version: Its version.
        role: `master` or `slave`, in the server's own words.
        eviction: Its `maxmemory-policy`.
        append_only: Whether it keeps an append-only file.
    """

    kind: str
    version: str
    role: str
    eviction: str
    append_only: bool | None

    @classmethod
    def read(cls, reply: bytes | Mapping[str, Any]) -> ServerInfo:
        """Return what the reply to `INFO` says: of one server, or of the first of a Cluster's."""
        info: Mapping[str, Any] = fields_of(reply) if isinstance(reply, bytes) else reply
        first = next(iter(info.values()), None)
        if isinstance(first, dict) and "redis_version" in first:
            info = first
        valkey = info.get("valkey_version")
        append_only = info.get("aof_enabled")
        return cls(
            kind="valkey" if valkey else "redis",
            version=str(valkey or info.get("redis_version", "")),
            role=str(info.get("role", "")),
            eviction=str(info.get("maxmemory_policy", "")),
            append_only=None if append_only is None else bool(int(append_only)),
        )

    def check(self, shown_url: str) -> None:
        """Refuse a server that would break what portlease promises.

        Raises:
            ConfigurationError: When it evicts keys, is a replica, or is too old.
        """
        if self.eviction and self.eviction != "noeviction":
            raise ConfigurationError(
                f"Redis at {shown_url} evicts keys (maxmemory-policy {self.eviction}), and with them live leases; "
                "set it right: redis-cli config set maxmemory-policy noeviction"
            )
        if self.role in {"slave", "replica"}:
            raise ConfigurationError(
                f"Redis at {shown_url} is a replica; give the URL of its primary, or a redis+sentinel:// URL"
            )
        if self.kind == "redis" and self.version and _numbers(self.version) < OLDEST_REDIS:
            raise ConfigurationError(f"Redis at {shown_url} is version {self.version}; use 6.2 or newer, or Valkey")

    def warnings(self) -> list[str]:
        """Return what works but should be known."""
        if self.append_only is False:
            return [
                (
                    "the server keeps no append-only file: after a restart leases come back only as their holders "
                    "re-assert them; switch it on: redis-cli config set appendonly yes"
                )
            ]
        return []


def fields_of(reply: bytes) -> dict[str, str]:
    """Return the fields of a reply to `INFO`."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
