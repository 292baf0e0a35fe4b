"""What the routes share: parameters, the answers that OpenAPI promises, and how a route reaches what it works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Header, Path, Query, Request

from allocator.api.models import NAME_PATTERN, ProblemBody
from allocator.api.problems import MEDIA_TYPE
from allocator.model.names import MAX_NAME_LENGTH, PORT_MAX, PORT_MIN, check_token

if TYPE_CHECKING:
    from allocator.api.claims import Claims

TOKEN_PATTERN = "^[0-9a-f]{32}$"  # noqa: S105  # the form of a token, not one

PoolName = Annotated[
    str | None,
    Query(
        alias="pool", pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH, description="The pool. [default: the server's]"
    ),
]
HostName = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
PortNumber = Annotated[int, Path(ge=PORT_MIN, le=PORT_MAX)]
TokenHeader = Annotated[
    str,
    Header(alias="Allocator-Token", pattern=TOKEN_PATTERN, description="The lease's token: the proof of holding it."),
]
OwnTokenHeader = Annotated[
    str | None,
    Header(
        alias="Allocator-Token",
        pattern=TOKEN_PATTERN,
        description="A token of the caller's own making, 128 random bits; sent again, it gets the same lease.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text that identifies this claim: the same caller sending it again gets the same lease.",
    ),
]

_PROBLEMS: dict[int, str] = {
    400: "The request cannot be read.",
    401: "A valid bearer token is needed.",
    403: "The credentials do not cover this.",
    404: "There is no such thing.",
    409: "Held by someone else, lost, or exhausted; `type` shows which, `Retry-After` when to try again.",
    413: "The request is too large.",
    415: "The header Content-Type has to be application/json.",
    421: "The request was made for another host name.",
    422: "The request cannot be right.",
    429: "Too many requests; `Retry-After` shows when to try again.",
    500: "An administrator has to fix something.",
    503: "Redis did not answer in time.",
}
_ALWAYS = (400, 401, 403, 413, 415, 421, 422, 429, 500, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: the problems of every route, and those of its own."""
    schema = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": _PROBLEMS[status], "content": schema} for status in sorted({*_ALWAYS, *statuses})}


def claims_of(request: Request) -> Claims:
    """Return the leases that an application serves."""
    found: Claims = request.app.state.claims
    return found


def known_token(token: str) -> str:
    """Return a token that came in a header.

    Raises:
        InvalidInputError: When it has not the form of one; the error does not repeat it.
    """
    return check_token(token)


def add_problem_schema(document: dict[str, Any]) -> None:
    """Put the schema of a problem into an OpenAPI document, for the references of `problems`."""
    schema = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    document.setdefault("components", {}).setdefault("schemas", {})["ProblemBody"] = schema
