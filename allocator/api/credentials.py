"""Credentials for the API: bearer tokens with scopes, known by their SHA-256 only.

A tokens file has a line for each credential: `name scope hash`, then `pools=a,b` where it is for some pools only; `#`
starts a comment. The token itself is 256 random bits, so a plain hash of it tells an attacker nothing and costs a
request microseconds. The file is read again when it changes, so that a deleted line is a revoked credential without a
restart. Never write, log or repeat a token here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_name
from allocator.model.owned import found_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TOKEN_PREFIX = "plt_"  # noqa: S105  # what every token begins with, so that secret scanners can find a leaked one
_POOLS = "pools="
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Scope(StrEnum):
    """What a credential covers; each covers those before it."""

    READ = "read"
    LEASE = "lease"
    ADMIN = "admin"
    FORCE = "force"

    def covers(self, needed: Scope) -> bool:
        """Return whether this scope is enough where `needed` is asked for."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called.

    Attributes:
        name: The credential's name, or `local` where none is asked for.
        scope: What it covers.
        secret: Returns bytes that only this caller and the server know: tokens of idempotent claims are derived from
            them. None where the server cannot tell one caller from another.
        pools: The pools that the credential is for; None for all.
    """

    name: str
    scope: Scope
    secret: Callable[[], bytes | None] = field(repr=False)
    pools: frozenset[str] | None = None

    def may_use(self, pool: str) -> bool:
        """Return whether the credential is for a pool."""
        return self.pools is None or pool in self.pools

    def token_for(self, *parts: str) -> str:
        """Return the lease token that these values always give for this caller, as 32 hexadecimal digits.

        Raises:
            InvalidInputError: When the server cannot tell who the caller is.
        """
        secret = self.secret()
        if secret is None:
            raise InvalidInputError(
                "Idempotency-Key needs a caller that this server can tell from others, and it cannot tell who you are; "
                "send an Allocator-Token of your own making, or start the server with --tokens-file"
            )
        return hmac.digest(secret, "\0".join(parts).encode(), "sha256").hex()[:32]


def new_api_token() -> str:
    """Return a new bearer token: 256 random bits behind a prefix."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return what a tokens file holds of a token: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def tokens_line(name: str, scope: Scope, token: str, pools: Iterable[str] = ()) -> str:
    """Return the line of a tokens file for a token, for some pools only where they are named.

    Raises:
        InvalidInputError: When the name, or that of a pool, is not valid.
    """
    line = f"{check_name('token', name)} {scope} {token_hash(token)}"
    named = ",".join(sorted({check_name("pool", pool) for pool in pools}))
    return f"{line} {_POOLS}{named}" if named else line


class TokensFile:
    """The credentials that a file names.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int, int] | None = None
        self._known: dict[str, _Credential] = {}

    def __repr__(self) -> str:
        return f"<TokensFile {self.path}, {len(self._known)} credentials>"

    def load(self) -> int:
        """Read the file if it has changed; return how many credentials it names.

        Raises:
            ConfigurationError: When it cannot be read, another user may change it, or a line of it is wrong.
        """
        try:
            about = self.path.stat()
            stamp = (about.st_ctime_ns, about.st_mtime_ns, about.st_size, about.st_ino)
            if stamp != self._stamp:
                text, why = found_text(self.path)
                if why:
                    raise ConfigurationError(
                        f"the tokens file {self.path} is not obeyed: {why}; let only its owner write it, who is this "
                        "user or root"
                    )
                self._known = _parse(self.path, text)
                self._stamp = stamp
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(f"the tokens file {self.path} cannot be read ({why}); fix it") from None
        return len(self._known)

    def caller(self, token: str) -> Caller | None:
        """Return whose token this is, or None."""
        self.load()
        found = self._known.get(token_hash(token))
        if found is None:
            return None
        return Caller(found.name, found.scope, lambda: token.encode("utf-8", "surrogateescape"), found.pools)


class _Credential(NamedTuple):
    """One line of a tokens file."""

    name: str
    scope: Scope
    pools: frozenset[str] | None


def _parse(path: Path, text: str) -> dict[str, _Credential]:
    known: dict[str, _Credential] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        pools = _pools(parts[3:])
        if len(parts) < 3 or parts[1] not in set(Scope) or not _HASH.fullmatch(parts[2]) or pools == frozenset():
            raise ConfigurationError(
                f"{path}: line {number} is not a credential; write 'name read|lease|admin|force hash', "
                "as 'allocator token' prints it, and 'pools=NAME,NAME' behind it for some pools only"
            )
        known[parts[2]] = _Credential(parts[0], Scope(parts[1]), pools)
    return known


def _pools(parts: list[str]) -> frozenset[str] | None:
    """Return the pools that the end of a line names: None when it names none, nothing when it is wrong."""
    if not parts:
        return None
    names = parts[0].removeprefix(_POOLS).split(",")
    try:
        checked = frozenset(check_name("pool", name) for name in names)
    except InvalidInputError:
        return frozenset()
    return checked if len(parts) == 1 and parts[0].startswith(_POOLS) else frozenset()
