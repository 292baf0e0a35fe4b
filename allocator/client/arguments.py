"""The arguments of a claim: which there are, and what each may be. Both allocators and their `hold` take them."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  # read from the declaration at run time
from functools import cache, wraps
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NotRequired,
    ParamSpec,
    Required,
    TypedDict,
    TypeVar,
    get_args,
    get_type_hints,
)

from allocator.model.durations import Duration, seconds_of
from allocator.model.errors import InvalidInputError
from allocator.model.names import check_labels, check_port, literal, shown
from allocator.model.pools import MAX_DURATION_MS

if TYPE_CHECKING:
    from collections.abc import Callable


P = ParamSpec("P")
T = TypeVar("T")

TOKEN_LENGTH = 32


class ProcessWords(TypedDict, total=False):
    """What a lease shows of the processes that it is bound to; see `Lease`."""

    pid: int
    pid_started: int
    holder_pid: int
    holder_started: int
    boot: str
    namespaces: str


class SeveralPorts(TypedDict, total=False):
    """The further arguments of a claim of several ports; see `ClaimRequest`."""

    names: tuple[str, ...]
    contiguous: bool


def checked(plugin: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a claim, each as it has to be; those that are None are left out.

    Raises:
        InvalidInputError: When one of them cannot be right, is missing, or is not an argument of a claim.
    """
    checks = _checks()
    if unknown := sorted(arguments.keys() - checks.keys()):
        raise InvalidInputError(f"a claim has no argument {shown(unknown[0])}; it has {', '.join(checks)}")
    if arguments.get("org") is None:
        raise InvalidInputError("a claim needs org, the organisation's id; give for example org='org-123'")
    given = {name: checks[name](name, value) for name, value in arguments.items() if value is not None}
    return {"plugin": check_text("plugin", plugin), **given}


def check_text(name: str, value: object) -> str:
    """Return `value` when it is text.

    Raises:
        InvalidInputError: When it is not.
    """
    if isinstance(value, str):
        return value
    raise InvalidInputError(f"{name}={literal(value)} is not text; give it in quotes")


def check_flag(name: str, value: object) -> bool:
    """Return `value` when it is True or False.

    Raises:
        InvalidInputError: When it is neither.
    """
    if isinstance(value, bool):
        return value
    raise InvalidInputError(f"{name}={literal(value)} is neither True nor False; give one of them")


def check_number(name: str, value: object) -> int:
    """Return `value` when it is a whole number from 0 on.

    Raises:
        InvalidInputError: When it is not.
    """
    if type(value) is int and value >= 0:
        return value
    raise InvalidInputError(f"{name}={literal(value)} is not a number of this kind; give a whole one from 0 on")


def check_ttl(name: str, ttl: object) -> float:
    """Return a TTL in seconds.

    Raises:
        InvalidInputError: When it is not above 0, or longer than any pool allows.
    """
    seconds = seconds_of(ttl, name)
    if 0 < seconds <= MAX_DURATION_MS / 1_000:
        return seconds
    raise InvalidInputError(f"a TTL of {ttl} is not valid; give more than 0 seconds, and at most 30 days")


def ttl_in_ms(ttl: Duration) -> int:
    """Return a TTL as milliseconds.

    Raises:
        InvalidInputError: When it is not above 0, or longer than any pool allows.
    """
    return max(1, round(check_ttl("ttl", ttl) * 1_000))


def check_priority(priority: object) -> int:
    """Return `priority` when it is one.

    Raises:
        InvalidInputError: When it is not a whole number from 0 to 9.
    """
    if type(priority) is int and 0 <= priority <= 9:
        return priority
    raise InvalidInputError(f"{literal(priority)} is not a priority; give a whole number from 0 to 9")


def check_token(token: object) -> str:
    """Return `token` when it has the form of one; the error does not repeat it.

    Raises:
        InvalidInputError: When it is anything but 32 hexadecimal digits.
    """
    if isinstance(token, str) and len(token) == TOKEN_LENGTH and all(digit in "0123456789abcdef" for digit in token):
        return token
    raise InvalidInputError("that token is not 32 hexadecimal digits; give the one that 'claim --format json' printed")


def _check_labels(name: str, labels: object) -> dict[str, str]:
    try:
        pairs = dict(labels)  # type: ignore[call-overload]  # a mapping, if the caller is right
    except (TypeError, ValueError):
        raise InvalidInputError(f"{name}={literal(labels)} is not a mapping; give a dict of texts") from None
    for key, value in pairs.items():
        check_text("a label's name", key)
        check_text(f"label {shown(key)}", value)
    return check_labels(pairs)


def _check_port(name: str, value: object) -> int:
    if isinstance(value, int | str):
        return check_port(value)
    raise InvalidInputError(f"{name}={literal(value)} is not a port; give a whole number")


def _check_priority(_name: str, value: object) -> int:
    return check_priority(value)


def _check_token(_name: str, value: object) -> str:
    return check_token(value)


class ClaimArguments(TypedDict):
    """The arguments of a claim beside its plugin, each with its type and with what checks it.

    Attributes:
        org: The organisation's id.
        instance: Which worker of this plugin and organisation; 0 unless given.
        port: The only port that will do.
        hint: The port to prefer where nothing else decides (the environment's).
        ttl: How long the lease lives without a heartbeat: seconds, or text such as `"30s"`.
        labels: Up to 16 `name=value` pairs.
        pid: The process that the lease is bound to, on this host.
        holder_pid: The process that looks after it, on this host.
        auto_instance: Whether the lowest free instance is taken.
        priority: 0-9: who waits with a higher one comes first.
        token: The token of a lease that may be held already: it is then returned, renewed.
        pre_start: Whether the worker is not running now: when anybody listens on the port that it has, that is declined
            and another one claimed.
        supersede_fence: Fence of this worker's lease whose process is proven dead on this very host.
    """

    org: Required[Annotated[str, check_text]]
    instance: NotRequired[Annotated[int, check_number]]
    port: NotRequired[Annotated[int | None, _check_port]]
    hint: NotRequired[Annotated[int | None, _check_port]]
    ttl: NotRequired[Annotated[Duration | None, check_ttl]]
    labels: NotRequired[Annotated[Mapping[str, str] | None, _check_labels]]
    pid: NotRequired[Annotated[int | None, check_number]]
    holder_pid: NotRequired[Annotated[int | None, check_number]]
    auto_instance: NotRequired[Annotated[bool, check_flag]]
    priority: NotRequired[Annotated[int, _check_priority]]
    token: NotRequired[Annotated[str | None, _check_token]]
    pre_start: NotRequired[Annotated[bool, check_flag]]
    supersede_fence: NotRequired[Annotated[int | None, check_number]]


@cache
def _checks() -> dict[str, Callable[[str, Any], object]]:
    """Return what checks each argument, as `ClaimArguments` declares it."""
    hints = get_type_hints(ClaimArguments, include_extras=True)
    return {name: get_args(get_args(hint)[0])[1] for name, hint in hints.items()}


def naming_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function that is called with other arguments than it has report it with an InvalidInputError."""

    @wraps(function)
    def checking(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except TypeError as error:
            from inspect import signature

            try:
                signature(function).bind(*arguments, **named)
            except TypeError as mismatch:
                raise wrong_arguments(function.__name__, mismatch) from None
            raise error from None

    return checking


def wrong_arguments(name: str, mismatch: TypeError) -> InvalidInputError:
    """Return the error for a call of a method with arguments that it does not have, or without one that it needs."""
    what = str(mismatch).partition("() ")[2] or str(mismatch)
    return InvalidInputError(f"{name}() {what}; see help(PortAllocator.{name})")
