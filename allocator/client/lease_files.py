"""Lease files: the tokens of leases that commands claimed on this host, so that `renew PORT` needs none.

One file per lease, readable by its owner only, replaced atomically. A file is memory, not truth: it may name a lease
that has ended; Redis decides. Tokens are written nowhere else on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import Lease
from allocator.model.names import WorkerId, check_name, check_port
from allocator.model.states import LeaseState
from allocator.protocol.decode import holder_words

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class LeaseFiles:
    """The lease files of one user on this host.

    Attributes:
        directory: Where they are: `leases` in the state directory.
    """

    directory: Path

    def _path(self, pool: str, host: str, port: int) -> Path:
        return self.directory / f"{pool}@{host}@{port}.json"

    def save(self, lease: Lease) -> None:
        """Write the file of a lease, with its token.

        Raises:
            ConfigurationError: When the directory or the disk cannot take it.
        """
        content = {
            "pool": lease.pool,
            "host": lease.host,
            "port": lease.port,
            "worker": str(lease.worker),
            "state": str(lease.state),
            "fence": lease.fence,
            "ttl_ms": lease.ttl_ms,
            "granted_at": lease.granted_at,
            "expires_at": lease.expires_at,
            "token": lease.token,
        } | {name: value for name, value in lease.holder_words().items() if value}
        temporary: Path | None = None
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.directory, prefix=".new-")
            temporary = Path(name)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            temporary.replace(self._path(lease.pool, lease.host, lease.port))
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise ConfigurationError(
                f"the lease file cannot be written in {self.directory} ({error.strerror}); "
                "make room there, or set XDG_STATE_HOME to a directory that can be written"
            ) from error

    def remove(self, lease: Lease) -> None:
        """Delete the file of a lease, if it is still of this lease."""
        path = self._path(lease.pool, lease.host, lease.port)
        known = self._read(path)
        if known and known.token == lease.token:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def load(self, pool: str, host: str, port: int) -> Lease | None:
        """Return the lease that was saved for a port, or None."""
        return self._read(self._path(pool, host, port))

    def find(self, pool: str, host: str, worker: WorkerId) -> Lease | None:
        """Return the newest lease that was saved for a worker on a host, or None."""
        mine = [lease for lease in self.all(pool, host) if lease.worker == worker]
        return max(mine, key=lambda lease: lease.fence, default=None)

    def all(self, pool: str | None = None, host: str | None = None) -> list[Lease]:
        """Return the saved leases, by host and port."""
        found = [lease for lease in self._each() if pool in {None, lease.pool} and host in {None, lease.host}]
        return sorted(found, key=lambda lease: (lease.pool, lease.host, lease.port))

    def _each(self) -> Iterator[Lease]:
        try:
            paths = list(self.directory.glob("*@*@*.json"))
        except OSError:
            return
        for path in paths:
            lease = self._read(path)
            if lease:
                yield lease

    def _read(self, path: Path) -> Lease | None:
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return Lease(
                pool=check_name("pool", fields["pool"]),
                host=check_name("host", fields["host"]),
                port=check_port(fields["port"]),
                worker=WorkerId.parse(fields["worker"]),
                state=LeaseState(fields["state"]),
                fence=int(fields["fence"]),
                ttl_ms=int(fields["ttl_ms"]),
                granted_at=float(fields["granted_at"]),
                expires_at=float(fields["expires_at"]),
                token=str(fields["token"]),
                **holder_words(fields),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(
                f"the lease file {path} cannot be read ({error.strerror}); mend its rights or delete it"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, InvalidInputError):
            raise ConfigurationError(f"the file {path} is not a lease file; delete it") from None
