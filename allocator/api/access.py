"""Who may call a route: the dependency of every route except health and the page's own files.

Without credentials, whoever reaches the socket may do everything: that is for loopback and for Unix sockets. A browser
on this machine reaches it too, with pages of anybody in it, so that a request then has to be of this server's own
origin where it shows where it comes from. Never write, log or repeat a token here.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from enum import Enum, auto
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers

from allocator.api.connections import USER_EXTENSION
from allocator.api.credentials import Caller, Scope, TokensFile
from allocator.api.problems import FORBIDDEN, KINDS, MEDIA_TYPE_MISSING, MISDIRECTED, UNAUTHORIZED, ProblemError
from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, MutableMapping

    Check = Callable[..., Coroutine[None, None, Caller]]


log = logging.getLogger("allocator.api")


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
        self._complaint: str | None = None
        self._secret = secrets.token_bytes(32)

    @property
    def tokens(self) -> TokensFile | None:
        """The credentials, or None where none are asked for."""
        return self._tokens

    def caller(self, request: Request, bearer: str | None) -> Caller:
        """Return who calls.

        Raises:
            ProblemError: When the credentials are missing or unknown, or the server cannot read those that it knows.
        """
        if self._tokens is None:
            self._check_names(request)
            return Caller("local", Scope.FORCE, lambda: self._secret_of_user(request))
        if bearer is None:
            raise ProblemError(
                UNAUTHORIZED,
                "this server wants a bearer token; send 'Authorization: Bearer …'",
                headers={"WWW-Authenticate": 'Bearer realm="portlease"'},
            )
        found = self._known(self._tokens, bearer)
        if found is None:
            raise ProblemError(
                UNAUTHORIZED,
                "that bearer token is not known here; ask for a new one",
                headers={"WWW-Authenticate": 'Bearer realm="portlease", error="invalid_token"'},
            )
        return found

    def _known(self, tokens: TokensFile, bearer: str) -> Caller | None:
        """Return whose token this is, or None.

        Raises:
            ProblemError: When the tokens file cannot be read.
        """
        try:
            found = tokens.caller(bearer)
        except ConfigurationError as error:
            raise self._unreadable(error) from None
        self._complaint = None
        return found

    def _unreadable(self, error: ConfigurationError) -> ProblemError:
        """Return the error while the credentials cannot be read; the log has the file's path and the reason.

        It is logged once for each reason, or every stranger could fill the log.
        """
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.error("%s; until then every caller with a token is refused", error, extra={"error": error})
        detail = "this server cannot read its credentials; its log has the reason, its administrator has to fix them"
        return ProblemError(KINDS[ConfigurationError], detail)

    def _secret_of_user(self, request: Request) -> bytes | None:
        """Return bytes that identify the calling user of this machine: a guessed key must not give another's lease."""
        user_of_connection = request.scope.get("extensions", {}).get(USER_EXTENSION)
        uid = None if user_of_connection is None else user_of_connection()
        return None if uid is None else hmac.digest(self._secret, str(uid).encode(), "sha256")

    def _check_names(self, request: Request) -> None:
        if self._hosts is None:
            return
        authority = request.headers.get("host", "").lower()
        if _without_port(authority) not in self._hosts:
            raise ProblemError(
                MISDIRECTED,
                "without credentials this server answers only to its loopback names; "
                "call it as 127.0.0.1 or localhost, or start it with --tokens-file",
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{authority}", f"https://{authority}"}:
            raise ProblemError(
                MISDIRECTED,
                "without credentials this server answers no page but its own; open its page under this address, or "
                "start it with --tokens-file",
            )

    def credential(self, scope: MutableMapping[str, Any]) -> str | None:
        """Return the name of the credential that a request proves, None when it proves none."""
        if self._tokens is None:
            return None
        bearer = _bearer_of(Headers(scope=scope))
        try:
            found = None if bearer is None else self._tokens.caller(bearer)
        except ConfigurationError:
            return None
        return None if found is None else found.name


def _without_port(authority: str) -> str:
    name, colon, port = authority.rpartition(":")
    return name if colon and port.isdecimal() else authority


def _bearer_of(headers: Headers) -> str | None:
    scheme, credential = get_authorization_scheme_param(headers.get("authorization"))
    return credential if scheme.lower() == "bearer" and credential else None


class PoolIn(Enum):
    """The parts of a request that can name the pool."""

    QUERY = auto()
    OWN = auto()
    """It means the server's own, whatever its query names."""
    NOWHERE = auto()


_bearer = HTTPBearer(
    auto_error=False, description="A token that 'allocator token' made; its scope must cover the route."
)


def requires(scope: Scope, *, pool: PoolIn = PoolIn.QUERY, is_seen_only: bool = True) -> Check:
    """Return the dependency that lets a caller of that scope through.

    Args:
        scope: What its credential has to cover.
        pool: Where a request states which pool it means, for credentials that are for some pools only.
        is_seen_only: Whether a GET changes nothing and holds nothing: a page of another site may make a browser send
            it, for it cannot read the answer.
    """

    async def check(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        access: Access = request.app.state.access
        caller = access.caller(request, credentials.credentials if credentials else None)
        if not caller.scope.covers(scope):
            raise ProblemError(
                FORBIDDEN, f"the credentials {caller.name} have scope {caller.scope}; this needs {scope}"
            )
        changes = request.method not in {"GET", "HEAD"}
        if access.tokens is None and (changes or not is_seen_only):
            _check_site(request)
        if changes:
            _check_media_type(request)
        if pool is not PoolIn.NOWHERE:
            check_pool(request, caller, request.query_params.get("pool") if pool is PoolIn.QUERY else None)
        return caller

    return check


def check_pool(request: Request, caller: Caller, pool: str | None) -> None:
    """Refuse a caller whose credential is not for a pool; None is the server's own.

    Raises:
        ProblemError: When it is not.
    """
    name = pool or request.app.state.claims.allocator.session.pool
    if not caller.may_use(name):
        allowed = ", ".join(sorted(caller.pools or ()))
        raise ProblemError(FORBIDDEN, f"the credentials {caller.name} are not for that pool; they are for {allowed}")


def _check_site(request: Request) -> None:
    """Refuse what a browser sends for a page of another origin; another port of this machine is one."""
    if request.headers.get("sec-fetch-site", "none").lower() not in {"none", "same-origin"}:
        raise ProblemError(
            FORBIDDEN,
            "a page of another origin asked for this; without credentials this server answers its own page only",
        )


def _check_media_type(request: Request) -> None:
    """Require the content type JSON: before a page of another origin may send it, a browser asks this server."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ProblemError(
            MEDIA_TYPE_MISSING,
            f"{request.method} needs the header Content-Type: application/json, with or without a body; add it",
        )


Reader = Annotated[Caller, Depends(requires(Scope.READ))]
ReaderOfOwn = Annotated[Caller, Depends(requires(Scope.READ, pool=PoolIn.OWN))]
"""Reads of the server's own pool alone."""
ReaderOfAny = Annotated[Caller, Depends(requires(Scope.READ, pool=PoolIn.NOWHERE))]
"""Reads of all pools, which the route cuts down to those of the credential."""
Taker = Annotated[Caller, Depends(requires(Scope.READ, is_seen_only=False))]
"""Reads that write whose turn it was, or hold a stream open."""
Holder = Annotated[Caller, Depends(requires(Scope.LEASE))]
Claimer = Annotated[Caller, Depends(requires(Scope.LEASE, pool=PoolIn.NOWHERE))]
"""Claims, which name their pool in the body: the route checks it."""
Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]
Forcer = Annotated[Caller, Depends(requires(Scope.FORCE))]
"""Ends what others hold."""
