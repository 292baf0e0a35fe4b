"""Lease files: the tokens of leases that commands claimed on this host, so that `renew PORT` needs none.

One file per lease, readable by its owner only, replaced atomically. A file is memory, not truth: it may name a lease
that has ended; Redis decides. Tokens are written nowhere else on disk.

A claim leaves its token here before it asks Redis, in a file named for its worker, and removes that file when the
lease file is there: so a claim that is killed halfway is finished by the next one of its worker, and two at once get
one lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.model.encodings import FILE
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import Lease
from allocator.model.names import WorkerId, check_name, check_port
from allocator.model.reading import read_text
from allocator.model.states import LeaseState
from allocator.protocol.decode import MAX_TIME_MS, WRONG_SHAPES, bounded, holder_words

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_NAME = 255
"""Longest name of a file in bytes, on every file system that matters; a pool and a host can have 128 each."""


_TOKEN = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LeaseFiles:
    """The lease files of one user on this host.

    Attributes:
        directory: Where they are: `leases` in the state directory.
    """

    directory: Path

    def _path(self, pool: str, host: str, port: int) -> Path:
        return self.directory / f"{_stem(pool, host)}@{port}.json"

    def _claim_path(self, pool: str, host: str, worker: WorkerId) -> Path:
        parts = (pool, host, worker.org, worker.plugin, str(worker.instance))
        name = f".claim@{FILE.separator.join(map(FILE.encode, parts))}"
        return self.directory / (name if len(name) <= MAX_FILE_NAME else f".claim@{_digest(name)}")

    def begin_claim(self, pool: str, host: str, worker: WorkerId, token: str) -> tuple[str, bool]:
        """Leave the token of a claim that is about to be made, unless an unfinished one of this worker left its own.

        Returns:
            The token to claim with, and whether it is the one that was given.

        Raises:
            ConfigurationError: When the directory or the disk cannot take it.
        """
        path = self._claim_path(pool, host, worker)
        with self._written(token) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename it spares what is there
            except FileExistsError:
                known = _token_in(path)
                if known:
                    return known, False
                temporary.replace(path)  # a machine that lost its power left an empty one, or half of one
            return token, True

    def end_claim(self, pool: str, host: str, worker: WorkerId) -> bool:
        """Forget the token of a claim that is finished or undone; return whether this call did."""
        try:
            self._claim_path(pool, host, worker).unlink()
        except OSError:
            return False
        return True

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
        with self._written(json.dumps(content)) as temporary:
            temporary.replace(self._path(lease.pool, lease.host, lease.port))

    @contextlib.contextmanager
    def _written(self, content: str) -> Iterator[Path]:
        """Give a private file with this content, to be moved where it belongs; it is gone at the end."""
        temporary: Path | None = None
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.directory, prefix=".new-")
            temporary = Path(name)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                self._give_to_the_owner(descriptor)
                file.write(content)
            yield temporary
        except OSError as error:
            raise ConfigurationError(
                f"the lease file cannot be written in {self.directory} ({(error.strerror or str(error)).lower()}); "
                "make room or access there, or give another state directory with ALLOCATOR_STATE_DIR"
            ) from error
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _give_to_the_owner(self, descriptor: int) -> None:
        """Leave a file that root writes to the user whose directory it is, or they could not read their own lease."""
        if os.geteuid() == 0:
            owner = self.directory.stat()
            with contextlib.suppress(OSError):  # root of a container that may not, or whose map has no such user
                os.fchown(descriptor, owner.st_uid, owner.st_gid)

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
        stem = _stem(pool, host) if pool and host else "*@*"
        found = [lease for lease in self._each(stem) if pool in {None, lease.pool} and host in {None, lease.host}]
        return sorted(found, key=lambda lease: (lease.pool, lease.host, lease.port))

    def scan(self) -> dict[str, int]:
        """Return the lease files by name, with the time of their last change in ns; nothing when there are none."""
        found: dict[str, int] = {}
        with contextlib.suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and entry.name.count("@") >= 2:
                    with contextlib.suppress(OSError):
                        found[entry.name] = entry.stat().st_mtime_ns
        return found

    def read(self, name: str) -> Lease | None:
        """Return the lease of a file that `scan` named, or None when it is gone.

        Raises:
            ConfigurationError: When it cannot be read or is no lease file.
        """
        return self._read(self.directory / name)

    def _each(self, stem: str) -> Iterator[Lease]:
        try:
            paths = list(self.directory.glob(f"{stem}@*.json"))
        except OSError:
            return
        for path in paths:
            lease = self._read(path)
            if lease:
                yield lease

    def _read(self, path: Path) -> Lease | None:
        try:
            fields = json.loads(read_text(path, only_regular=True))
            return Lease(
                pool=check_name("pool", fields["pool"]),
                host=check_name("host", fields["host"]),
                port=check_port(fields["port"]),
                worker=WorkerId.parse(fields["worker"]),
                state=LeaseState(fields["state"]),
                fence=bounded(fields["fence"]),
                ttl_ms=bounded(fields["ttl_ms"], MAX_TIME_MS),
                granted_at=_moment(fields["granted_at"]),
                expires_at=_moment(fields["expires_at"]),
                token=_token(fields["token"]),
                **holder_words(fields),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(
                f"the lease file {path} cannot be read ({error.strerror}); mend its rights or delete it"
            ) from error
        except (*WRONG_SHAPES, InvalidInputError):
            raise ConfigurationError(f"the file {path} is not a lease file; delete it") from None


def _token(text: str) -> str:
    if _TOKEN.fullmatch(text):
        return text
    raise ValueError


def _token_in(path: Path) -> str | None:
    """Return the token that an unfinished claim left, or None when what stands there is none."""
    with contextlib.suppress(ValueError):
        return _token(read_text(path, only_regular=True))
    return None


def _moment(value: float) -> float:
    bounded(value * 1_000, MAX_TIME_MS)
    return float(value)


def _stem(pool: str, host: str) -> str:
    """Return how the names of a host's lease files begin."""
    stem = f"{pool}@{host}"
    if len(stem) <= MAX_FILE_NAME - len("@65535.json"):
        return stem
    return f"{pool}@{host[:64]}.{_digest(stem)}"


def _digest(text: str) -> str:
    from hashlib import sha256  # 2 ms that only long names need

    return sha256(text.encode()).hexdigest()[:32]
