"""Errors as RFC 9457 problem details: a status and a stable `type` for every error that a caller can meet.

The rule of this file: a problem is made of the error's own sentence and data. Nothing of the request is repeated
that could be a secret, and no traceback leaves the server. To add an error, add its row to `KINDS`.

Source: RFC 9457, "Problem Details for HTTP APIs", 2023.
"""

from __future__ import annotations

import logging
import math
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from allocator.model import errors
from allocator.model.durations import parse_duration_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:portlease:problem:"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""What a route can answer to, in the order in which they are checked."""
STORE_RETRY_S = 1
"""How long a caller is asked to wait when Redis is away: about the time of a failover's first retry."""

log = logging.getLogger("allocator.api")


class Kind(NamedTuple):
    """One kind of problem: its status, the last part of its `type`, its title."""

    status: int
    name: str
    title: str


KINDS: Mapping[type[errors.AllocatorError], Kind] = {
    errors.InvalidInputError: Kind(422, "invalid-input", "The request cannot be right"),
    errors.NoWorkerError: Kind(409, "none-ready", "No worker of the service is ready"),
    errors.DatabaseUnavailableError: Kind(503, "database-unavailable", "The database did not answer in time"),
    errors.PoolMissingError: Kind(404, "pool-missing", "The pool is not defined"),
    errors.ConfigurationError: Kind(500, "configuration", "An administrator has to fix something"),
    errors.StoreUnavailableError: Kind(503, "store-unavailable", "Redis did not answer in time"),
    errors.LeaseLostError: Kind(409, "lease-lost", "The lease is no longer this holder's"),
    errors.PortRefusedError: Kind(409, "port-refused", "The kernel refused the port"),
    errors.HostConflictError: Kind(409, "host-conflict", "Another machine uses this host's name"),
    errors.HeldError: Kind(409, "held", "Held by someone else"),
    errors.CordonedError: Kind(409, "cordoned", "The host gives out no new ports"),
    errors.RecoveringError: Kind(
        409, "recovering", "Redis may have forgotten grants; holders get the time to report them"
    ),
    errors.LimitError: Kind(409, "limit", "A limit of the pool is reached"),
    errors.ExhaustedError: Kind(409, "exhausted", "No port is free now"),
    errors.AllocatorError: Kind(500, "unexpected", "The server met an error that it does not know"),
}
"""The most special class of an error decides. Exhaustion is a 409 with `Retry-After`: 5xx means that we are broken."""

NOT_FOUND = Kind(404, "not-found", "There is nothing there")
METHOD_NOT_ALLOWED = Kind(405, "method-not-allowed", "The method is not allowed here")
UNAUTHORIZED = Kind(401, "unauthorized", "A valid bearer token is needed")
FORBIDDEN = Kind(403, "forbidden", "The credentials do not cover this")
MISDIRECTED = Kind(421, "misdirected", "The request was made for another host")
TOO_LARGE = Kind(413, "too-large", "The request is too large")
MEDIA_TYPE_MISSING = Kind(415, "media-type", "A request that changes something is sent as application/json")
TOO_MANY = Kind(429, "too-many-requests", "Too many requests")
TOO_MANY_CONNECTIONS = Kind(503, "too-many-connections", "As many connections as there may be are open")
BAD_REQUEST = Kind(400, "bad-request", "The request cannot be read")
UNEXPECTED = KINDS[errors.AllocatorError]
PLAIN_KINDS = (
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    UNAUTHORIZED,
    FORBIDDEN,
    MISDIRECTED,
    TOO_LARGE,
    MEDIA_TYPE_MISSING,
    TOO_MANY,
    TOO_MANY_CONNECTIONS,
    BAD_REQUEST,
)
"""The problems that are not an error of the library."""


class ProblemError(Exception):
    """A problem that is raised by a route or a check of the API itself."""

    def __init__(self, kind: Kind, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = headers or {}


def kind_of(error: errors.AllocatorError) -> Kind:
    """Return the kind of problem that an error is."""
    return next(KINDS[base] for base in type(error).__mro__ if base in KINDS)


def problem(
    kind: Kind,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # noqa: ANN401  # JSON values
) -> JSONResponse:
    """Return a problem as a response; members that are None are left out."""
    body = {
        "type": TYPE_PREFIX + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": errors.on_one_line(detail),
    }
    given = {name: value for name, value in members.items() if value is not None}
    return JSONResponse(
        body | given,
        status_code=kind.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


_OPTION = re.compile(r"--([a-z][a-z-]*)(?: (\d[\w.]*))?")
_FIELDS = {"wait": "wait_s", "ttl": "ttl_s", "label": "labels", "token": "the header Allocator-Token"}


def with_fields(detail: str) -> str:
    """Return an error's sentence with the fields of the API in place of the options of the command line."""
    return _OPTION.sub(lambda option: _FIELDS.get(option[1], option[1].replace("-", "_")) + _value(option[2]), detail)


def _value(duration: str | None) -> str:
    if duration is None:
        return ""
    try:
        return f" {parse_duration_ms(duration) / 1_000:g}"
    except errors.InvalidInputError:
        return f" {duration}"


def of_error(error: errors.AllocatorError) -> JSONResponse:
    """Return an error of the library as a problem."""
    kind = kind_of(error)
    retry_after = error.retry_after
    if kind.name == "store-unavailable":
        retry_after = STORE_RETRY_S
    holder = getattr(error, "holder", None)
    return problem(
        kind,
        with_fields(str(error)),
        headers={} if retry_after is None else {"Retry-After": str(max(0, math.ceil(retry_after)))},
        host=error.host,
        port=error.port,
        worker=error.worker,
        retry_after_s=None if retry_after is None else round(retry_after, 3),
        holder=holder.as_json() if holder else None,
    )


def install(application: FastAPI) -> None:
    """Make every error of an application a problem.

    The handlers are coroutines: the framework runs plain functions in threads, which costs more than their work.
    """
    application.add_exception_handler(errors.AllocatorError, _allocator_error)
    application.add_exception_handler(ProblemError, _problem_error)
    application.add_exception_handler(RequestValidationError, _invalid_request)
    application.add_exception_handler(HTTPException, _http_error)
    application.add_exception_handler(Exception, _unexpected)


async def _allocator_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.AllocatorError)  # noqa: S101  # it is installed for those
    response = of_error(error)
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", request.method, request.url.path, error, extra={"error": error})
    return response


async def _problem_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)  # noqa: S101  # as above
    return problem(error.kind, error.detail, headers=error.headers)


async def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # as above
    found = [
        {"where": ".".join(str(part) for part in one["loc"]), "what": str(one["msg"])} for one in error.errors()[:20]
    ]
    if any(one["type"] == "json_invalid" for one in error.errors()):
        return problem(BAD_REQUEST, "the body is not valid JSON; send an object as application/json")
    first = found[0] if found else {"where": "request", "what": "is not valid"}
    detail = f"{first['where']}: {first['what']}; correct it (see /openapi.json)"
    return problem(KINDS[errors.InvalidInputError], detail, errors=found)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  # as above
    headers = error.headers or {}
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem(NOT_FOUND, f"no route {request.url.path[:100]}; see /openapi.json", headers=headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _wrong_method(request)
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return problem(BAD_REQUEST._replace(status=error.status_code), str(error.detail), headers=headers)
    return problem(UNEXPECTED, "the server met an error; its log has more", headers=headers)


def _wrong_method(request: Request) -> JSONResponse:
    """Return the problem of a path that has other methods: all of them, where the framework names its first route's."""
    routed = {method for method in METHODS if _is_routed(request, method)}
    allowed = [method for method in METHODS if method in routed or (method == "HEAD" and "GET" in routed)]
    methods = " or ".join(filter(None, [", ".join(allowed[:-1]), *allowed[-1:]]))
    detail = f"{request.method} is not allowed here; use {methods}"
    return problem(METHOD_NOT_ALLOWED, detail, headers={"Allow": ", ".join(allowed)})


def _is_routed(request: Request, method: str) -> bool:
    asked = {"type": "http", "method": method, "headers": []}
    asked |= {name: request.scope[name] for name in ("path", "root_path") if name in request.scope}
    return any(route.matches(dict(asked))[0] is Match.FULL for route in request.app.routes)


async def _unexpected(_request: Request, _error: Exception) -> JSONResponse:
    return problem(UNEXPECTED, "the server met an error that it does not know; its log has more")
