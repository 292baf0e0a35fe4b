"""Lease files: the tokens of leases that commands claimed on this host, so that `renew PORT` needs none.

One file per lease, readable by its owner only, replaced atomically; files of others in the folder are not read. A file
is memory, not truth: it may name a lease that has ended; Redis decides. Tokens are written nowhere else on disk.

A claim leaves its token here before it asks Redis, in a file named for its worker, and removes that file when the
lease file is there: so a claim that is killed halfway is finished by the next one of its worker, and two at once get
one lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

from allocator.kernel.answers import Answers
from allocator.model.encodings import FILE
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import HOLDER_FIELDS, Lease
from allocator.model.names import WorkerId, check_name, check_port
from allocator.model.owned import foreign_folder, private_folder
from allocator.model.states import LeaseState
from allocator.model.values import Value
from allocator.operations.steps import Judgement, Verdict
from allocator.protocol.wire import MAX_TIME_MS, WRONG_SHAPES, bounded, holder_fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from allocator.model.owned import OpenFolder
    from allocator.operations.steps import JudgeHolder, StoreLeases, StoreTokens

MAX_FILE_NAME = 255
"""Longest name of a file in bytes, on every file system that matters; a pool and a host can have 128 each."""

MAX_FILES = 4_096
"""Names that are read of a folder: a pool has fewer ports, and its owner may fill it with anything."""

_TOKEN = re.compile(r"[0-9a-f]{32}", re.ASCII)


class LeaseFiles(Value):
    """The lease files of one user on this host.

    Attributes:
        directory: Where they are: `leases` in the state directory.
        owner: Whose they are, when an agent looks after another user's; None for the caller's own.
    """

    directory: Path
    owner: int | None = None

    @classmethod
    def of_another(cls, directory: Path) -> LeaseFiles:
        """Return the lease files of whoever owns a folder that exists.

        Raises:
            ConfigurationError: When it is a link or not a folder.
            OSError: When it cannot be opened.
        """
        with foreign_folder(directory, None) as folder:
            return cls(directory, folder.uid)

    def _opened(self) -> AbstractContextManager[OpenFolder]:
        return private_folder(self.directory) if self.owner is None else foreign_folder(self.directory, self.owner)

    def begin_claim(self, pool: str, host: str, worker: WorkerId, token: str) -> tuple[str, bool]:
        """Store the token of a claim that is about to begin, unless an unfinished claim of this worker has one.

        Returns:
            The token to claim with, and whether it is the one that was given.

        Raises:
            ConfigurationError: When the directory or the disk cannot take it.
        """
        name = _claim_name(pool, host, worker)
        with self._writing(token) as (folder, temporary):
            try:
                folder.link(temporary, name)  # unlike a rename it spares what is there
            except FileExistsError:
                known = _token_in(folder, name)
                if known:
                    return known, False
                folder.move(temporary, name)  # a machine that lost its power left an empty one, or half of one
            return token, True

    def end_claim(self, pool: str, host: str, worker: WorkerId) -> bool:
        """Forget the token of a claim that is finished or undone; return whether this call did."""
        with self._present() as folder:
            return folder is not None and folder.remove(_claim_name(pool, host, worker))

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
        } | {name: value for name in HOLDER_FIELDS if (value := getattr(lease, name))}
        with self._writing(json.dumps(content)) as (folder, temporary):
            folder.move(temporary, _name(lease.pool, lease.host, lease.port))

    @contextlib.contextmanager
    def _writing(self, content: str) -> Iterator[tuple[OpenFolder, str]]:
        """Yield a private file with this content, which the caller moves to its name; it is removed at the end."""
        try:
            with self._opened() as folder, folder.temporary(content) as temporary:
                yield folder, temporary
        except OSError as error:
            raise ConfigurationError(
                f"the lease file cannot be written in {self.directory} ({(error.strerror or str(error)).lower()}); "
                "make room or access there, or give another state directory with ALLOCATOR_STATE_DIR"
            ) from error

    @contextlib.contextmanager
    def _present(self) -> Iterator[OpenFolder | None]:
        """Yield the folder, or None when there is none yet.

        Raises:
            ConfigurationError: When it is not the owner's, or cannot be opened.
        """
        with contextlib.ExitStack() as stack:
            found: OpenFolder | None = None
            if os.path.lexists(self.directory):
                try:
                    found = stack.enter_context(self._opened())
                except FileNotFoundError:  # removed meanwhile
                    found = None
                except OSError as error:
                    raise ConfigurationError(
                        f"the lease files in {self.directory} cannot be read ({error.strerror}); fix its rights"
                    ) from error
            yield found

    def remove(self, lease: Lease) -> None:
        """Delete the file of a lease, if it is still of this lease."""
        name = _name(lease.pool, lease.host, lease.port)
        known = self.read(name)
        if known and known.token == lease.token:
            with self._present() as folder:
                if folder is not None:
                    folder.remove(name)

    def load(self, pool: str, host: str, port: int) -> Lease | None:
        """Return the lease that was saved for a port, or None."""
        return self.read(_name(pool, host, port))

    def find(self, pool: str, host: str, worker: WorkerId) -> Lease | None:
        """Return the newest lease that was saved for a worker on a host, or None."""
        mine = [lease for lease in self.all(pool, host) if lease.worker == worker]
        return max(mine, key=lambda lease: lease.fence, default=None)

    def all(self, pool: str | None = None, host: str | None = None) -> list[Lease]:
        """Return the saved leases, by host and port; a file that is not one is left out, and named by `doctor`."""
        stem = f"{_stem(pool, host)}@" if pool and host else ""
        found = []
        for name in self.scan() or {}:
            if not name.startswith(stem):
                continue
            with contextlib.suppress(ConfigurationError):
                lease = self.read(name)
                if lease and pool in {None, lease.pool} and host in {None, lease.host}:
                    found.append(lease)
        return sorted(found, key=lambda lease: (lease.pool, lease.host, lease.port))

    def scan(self) -> dict[str, int] | None:
        """Return the lease files by name, with the time of their last change in ns, or None when there is no folder.

        Raises:
            ConfigurationError: When the folder is not the owner's, or cannot be opened.
        """
        with self._present() as folder:
            if folder is None:
                return None
            entries = folder.entries(MAX_FILES)
        return {name: at for name, at in entries.items() if name.endswith(".json") and name.count("@") >= 2}

    def read(self, name: str) -> Lease | None:
        """Return the lease of a file that `scan` named, or None when it is gone.

        Raises:
            ConfigurationError: When it cannot be read or is not a lease file.
        """
        path = self.directory / name
        with self._present() as folder:
            if folder is None:
                return None
            try:
                return _lease(json.loads(folder.read(name)))
            except FileNotFoundError:
                return None
            except OSError as error:
                raise ConfigurationError(
                    f"the lease file {path} cannot be read ({error.strerror}); fix its rights or delete it"
                ) from error
            except (*WRONG_SHAPES, InvalidInputError):
                raise ConfigurationError(f"the file {path} is not a lease file; delete it") from None


class FileAnswers(Answers):
    """Stores the tokens of claims, and their leases, in the lease files of a user.

    Whatever ends a claim (Ctrl-C, `kill -9`, a full disk, another claim for the same worker at the same moment) leaves
    either nothing, or a lease that the next claim of this worker on this host gets.

    Args:
        files: The lease files.
    """

    def __init__(self, files: LeaseFiles) -> None:
        self.files = files

    def store_tokens(self, step: StoreTokens) -> tuple[str, ...]:
        """Write down the tokens; return those of an earlier claim of these workers that was not finished."""
        named = zip(step.workers, step.tokens, strict=False)  # without names there is nothing to keep them under
        kept = [self.files.begin_claim(step.pool, step.host, worker, token)[0] for worker, token in named]
        return tuple(kept) if step.workers else step.tokens

    def store_leases(self, step: StoreLeases) -> bool:
        """Write the lease files, then forget the tokens; return whether this did."""
        for lease in step.leases:
            for former in self.files.all(step.pool, step.host):
                if former.worker == lease.worker and former.port != lease.port:
                    self.files.remove(former)
            self.files.save(lease)
        ended = [self.files.end_claim(step.pool, step.host, worker) for worker in step.workers]
        return all(ended)

    def judge_holder(self, step: JudgeHolder) -> Judgement:
        """Return the token of a lease whose file is here, and what the kernel knows of any other."""
        known = self.files.find(step.holder.pool, step.holder.host, step.holder.worker)
        if known and known.fence == step.holder.fence and known.token:
            return Judgement(Verdict.OURS, known.token)
        return super().judge_holder(step)


def _lease(fields: Any) -> Lease:  # noqa: ANN401  # whatever stood in a file
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
        **holder_fields(fields),
    )


def _name(pool: str, host: str, port: int) -> str:
    return f"{_stem(pool, host)}@{port}.json"


def _claim_name(pool: str, host: str, worker: WorkerId) -> str:
    parts = (pool, host, worker.org, worker.plugin, str(worker.instance))
    name = f".claim@{FILE.separator.join(map(FILE.encode, parts))}"
    return name if len(name) <= MAX_FILE_NAME else f".claim@{_digest(name)}"


def _token(text: str) -> str:
    if _TOKEN.fullmatch(text):
        return text
    raise ValueError


def _token_in(folder: OpenFolder, name: str) -> str | None:
    """Return the token that an unfinished claim left, or None when what stands there is not one, or not its owner's."""
    with contextlib.suppress(ValueError, OSError):
        return _token(folder.read(name))
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
