"""Who may call a route: the dependency that every route but health and the page's own files names.

Without credentials, whoever reaches the socket may do everything: that is for loopback and for Unix sockets. Never
write, log or repeat a token here.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from allocator.api.credentials import Caller, Scope, TokensFile
from allocator.api.problems import FORBIDDEN, KINDS, MISDIRECTED, UNAUTHORIZED, ProblemError
from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

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
        self._local = Caller("local", Scope.ADMIN, secrets.token_bytes(32))

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
            return self._local
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
        """Return what a caller is told while nobody can be known; where the file lies and what it lacks the log has.

        It is logged once for each reason, or every stranger could fill the log.
        """
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.error("%s; until then every caller with a token is refused", error, extra={"error": error})
        detail = "this server cannot read its credentials; its log says why, its administrator has to mend them"
        return ProblemError(KINDS[ConfigurationError], detail)

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
                "call it as 127.0.0.1 or localhost, or start it with --tokens-file",
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
