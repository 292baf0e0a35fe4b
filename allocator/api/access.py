"""Who may call: bearer tokens with scopes, known by their SHA-256 only.

A tokens file has a line per credential: `name scope hash`, `#` starts a comment. The token itself is 256 random bits,
so a plain hash of it tells an attacker nothing and costs a request microseconds. The file is read again when it
changes, so that a deleted line is a revoked credential without a restart. Never write, log or repeat a token here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from allocator.api.problems import FORBIDDEN, MISDIRECTED, UNAUTHORIZED, ProblemError
from allocator.model.errors import ConfigurationError
from allocator.model.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

TOKEN_PREFIX = "plt_"  # noqa: S105  # what every token begins with, so that secret scanners can find a leaked one
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Scope(StrEnum):
    """What a credential covers; each covers those before it."""

    READ = "read"
    LEASE = "lease"
    ADMIN = "admin"

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
        secret: Bytes that only this caller and the server know: tokens of idempotent claims are derived from it.
    """

    name: str
    scope: Scope
    secret: bytes = field(repr=False)

    def token_for(self, *words: str) -> str:
        """Return the lease token that these words always give for this caller, as 32 hexadecimal digits."""
        return hmac.digest(self.secret, "\0".join(words).encode(), "sha256").hex()[:32]


def new_api_token() -> str:
    """Return a new bearer token: 256 random bits behind a prefix."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return what a tokens file holds of a token: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def tokens_line(name: str, scope: Scope, token: str) -> str:
    """Return the line of a tokens file for a token.

    Raises:
        InvalidInputError: When the name is not valid.
    """
    return f"{check_name('token', name)} {scope} {token_hash(token)}"


class TokensFile:
    """The credentials that a file names.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._known: dict[str, tuple[str, Scope]] = {}

    def __repr__(self) -> str:
        return f"<TokensFile {self.path}, {len(self._known)} credentials>"

    def load(self) -> int:
        """Read the file if it has changed; return how many credentials it names.

        Raises:
            ConfigurationError: When it cannot be read or a line of it is wrong.
        """
        try:
            about = self.path.stat()
            stamp = (about.st_mtime_ns, about.st_size, about.st_ino)
            if stamp != self._stamp:
                self._known = _parse(self.path, self.path.read_text(encoding="utf-8"))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(f"the tokens file {self.path} cannot be read ({why}); mend it") from None
        return len(self._known)

    def caller(self, token: str) -> Caller | None:
        """Return whose token this is, or None."""
        self.load()
        found = self._known.get(token_hash(token))
        return Caller(*found, token.encode("utf-8", "surrogateescape")) if found else None


def _parse(path: Path, text: str) -> dict[str, tuple[str, Scope]]:
    known: dict[str, tuple[str, Scope]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or words[1] not in set(Scope) or not _HASH.fullmatch(words[2]):
            raise ConfigurationError(
                f"{path}: line {number} is no credential; write 'name read|lease|admin hash', "
                "as 'allocator token' prints it"
            )
        known[words[2]] = (words[0], Scope(words[1]))
    return known


class Access:
    """Decides who may call an application.

    Args:
        tokens: The credentials, or None: whoever reaches the socket may do everything.
        hosts: Without credentials, the names by which this server may be called; None for any. A web page that makes
            a browser call a loopback server under a name of its own (DNS rebinding) is refused by it.
    """

    def __init__(self, tokens: TokensFile | None = None, *, hosts: Collection[str] | None = None) -> None:
        self._tokens = tokens
        self._hosts = None if hosts is None else frozenset(hosts)
        self._local = Caller("local", Scope.ADMIN, secrets.token_bytes(32))

    @property
    def is_open(self) -> bool:
        """Whether no credentials are asked for."""
        return self._tokens is None

    def caller(self, request: Request, bearer: str | None) -> Caller:
        """Return who calls.

        Raises:
            ProblemError: When the credentials are missing or unknown.
        """
        if self._tokens is None:
            self._check_names(request)
            return self._local
        if bearer is None:
            raise ProblemError(
                UNAUTHORIZED,
                "this server wants a bearer token; send 'Authorization: Bearer …'",
                headers={"WWW-Authenticate": 'Bearer realm="portlease"'},
            )
        found = self._tokens.caller(bearer)
        if found is None:
            raise ProblemError(
                UNAUTHORIZED,
                "that bearer token is not known here; ask for a new one",
                headers={"WWW-Authenticate": 'Bearer realm="portlease", error="invalid_token"'},
            )
        return found

    def _check_names(self, request: Request) -> None:
        if self._hosts is None:
            return
        named = _without_port(request.headers.get("host", ""))
        origin = request.headers.get("origin")
        origin_name = named if origin is None else _without_port(origin.partition("://")[2])
        if named not in self._hosts or origin_name not in self._hosts:
            raise ProblemError(
                MISDIRECTED,
                "without credentials this server answers only to its loopback names; "
                "call it as 127.0.0.1 or localhost, or start it with --tokens",
            )


def _without_port(authority: str) -> str:
    name, colon, port = authority.lower().rpartition(":")
    return name if colon and port.isdecimal() else authority.lower()


_bearer = HTTPBearer(
    auto_error=False, description="A token that 'allocator token' made; its scope must cover the route."
)


def requires(scope: Scope) -> Callable[..., Coroutine[None, None, Caller]]:
    """Return the dependency that lets a caller of that scope through."""

    async def check(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        access: Access = request.app.state.access
        caller = access.caller(request, credentials.credentials if credentials else None)
        if not caller.scope.covers(scope):
            raise ProblemError(
                FORBIDDEN, f"the credentials {caller.name} have scope {caller.scope}; this needs {scope}"
            )
        return caller

    return check


Reader = Annotated[Caller, Depends(requires(Scope.READ))]
Holder = Annotated[Caller, Depends(requires(Scope.LEASE))]
Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]
