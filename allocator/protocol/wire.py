"""Calls of Lua scripts: how a script is assembled, how its arguments are encoded, and how its reply is decoded.

`signatures/` has one class for each script, made with the functions here. Only a signature knows the positions of
arguments in ARGV and of values in a reply. A reply of the wrong shape raises an AllocatorError, never a traceback.

A script is assembled when it is first used. A line `--@include NAME` is replaced by `lua/lib/NAME.lua`, once for each
script. A named constant (`local PAGE, PAGES = 64, 4`) is replaced by its value, because a local that a Lua function
captures costs an allocation in every run.
"""

from __future__ import annotations

import json
import re
import sys
from enum import EnumType
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from allocator.model.encodings import sha1
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import HOLDER_FIELDS, NUMBER_FIELDS, TEXT_FIELDS, Lease, error_line
from allocator.model.names import WorkerId, check_address, check_name, check_port, shown
from allocator.model.pools import FLEET_NAMESPACE
from allocator.model.states import STATES
from allocator.model.values import Value, declared_fields, field, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

PREFIX = "alloc:"


def pool_key(pool: str) -> str:
    """Return the key of a pool; the braces make all its keys one Cluster slot."""
    return f"{PREFIX}{{{pool}}}"


def script_keys(pool: str, namespace: str = FLEET_NAMESPACE) -> tuple[str, str]:
    """Return KEYS for a script that works on one namespace of ports of a pool."""
    base = pool_key(pool)
    return base, f"{base}:ports:{namespace}"


_LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^([ \t]*)--@include (\w+)\n", re.MULTILINE)
_CONSTANTS = re.compile(r"^[ \t]*local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) = (.+)\n", re.MULTILINE)
_WHOLE_LINE_COMMENT = re.compile(r"^[ \t]*--.*\n", re.MULTILINE)


class Script(Value):
    """One script.

    Attributes:
        name: The transition that it does: `claim`, `renew`, …
        source: Its text, fragments included and comments left out.
        sha1: What `EVALSHA` calls it, in hexadecimal digits.
    """

    name: str
    source: str
    sha1: str


def script_names() -> list[str]:
    """Return the names of all scripts, in alphabetical order."""
    return sorted(file.stem for file in _LUA.glob("*.lua"))


@cache
def script(name: str) -> Script:
    """Return the script of that name.

    Raises:
        FileNotFoundError: When there is none: a mistake in this package, not of its user.
    """
    source = assembled((_LUA / f"{name}.lua").read_text(encoding="utf-8"))
    return Script(name, source, sha1(source.encode()))


def assembled(text: str) -> str:
    """Return the text of a script as it is sent: fragments and constants put in, comments left out."""
    return _WHOLE_LINE_COMMENT.sub("", _with_constants(_with_fragments(text, set())))


def _with_fragments(text: str, known: set[str]) -> str:
    """Put in the fragments that a text includes, but for those that are `known` in all of it."""

    def fragment(include: re.Match[str]) -> str:
        indent, name = include.groups()
        if name in known:
            return ""
        if not indent:
            known.add(name)
        return _with_fragments(
            (_LUA / "lib" / f"{name}.lua").read_text(encoding="utf-8"), known if not indent else {*known}
        )

    return _INCLUDE.sub(fragment, text)


def _with_constants(text: str) -> str:
    values: dict[str, str] = {}
    for names, literals in _CONSTANTS.findall(text):
        values.update(zip(names.split(", "), literals.split(", "), strict=True))
    return re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda value: values.get(value[0], value[0]), _CONSTANTS.sub("", text))


R = TypeVar("R")
Arguments = tuple[str | int, ...]
UNKNOWN_AGE_MS = 10**12
"""For how long a host has run of which nobody knows: 31 years, so that it takes no name over from a live one."""


class ScriptCall(Value):
    """Run a script; answered with its reply (nested lists of `bytes`, `str` and `int`).

    Attributes:
        script: Which script: the name of a file under `lua/`, without `.lua`.
        keys: Its KEYS, all with the hash tag of one pool.
        args: Its ARGV.
        replicas: How many replicas have to have what it wrote; answered with the reply and how many had it in time,
            where that is not 0.
        signature: The typed call that this one was made from, or None.
    """

    script: str
    keys: tuple[str, ...]
    args: Arguments = ()
    replicas: int = 0
    signature: Call[Any] | None = field(default=None, repr=False, compare=False)

    def command(self, *, in_cluster: bool, whole: bool = False) -> Arguments:
        """Return the command that runs the script.

        In a Cluster it has one key more, which never exists. While a slot moves, the node that receives it runs a
        script of several keys only when it has them all; but the keys that a script derives may still be on their way,
        and would seem not to be there. With a key that nobody has it answers TRYAGAIN until the slot has moved.

        Source: `getNodeByQuery` in `cluster.c` of Redis and Valkey.

        Args:
            in_cluster: Whether it goes to a Cluster.
            whole: Whether to send the script's text, for a server that does not know its SHA-1 yet.
        """
        keys = (*self.keys, f"{self.keys[0]}:absent") if in_cluster else self.keys
        one = script(self.script)
        if whole:
            return "EVAL", one.source, len(keys), *keys, *self.args
        return "EVALSHA", one.sha1, len(keys), *keys, *self.args


class Call(Value, Generic[R], kw_only=True):
    """The arguments of a script; a subclass adds its own, in the order of ARGV.

    A whole number and a text are one argument, a set of ports one with ranges, a mapping one with the members that it
    adds to a lease's JSON. Records in a tuple are the arguments of each in turn, with their number before them where
    more fields follow.

    Attributes:
        script: The script, of the class.
        first: Arguments that are the same in every call of the class; they come before the fields.
        may_end_early: Whether arguments at the end that are empty or 0 are left out, of the class.
        pool: The pool that it is about.
        namespace: Where a port number is unique: a host, or `*` for the whole fleet.
        replicas: The number of replicas that have to confirm what it wrote; the reply has the number that did in time.
    """

    script: ClassVar[str]
    first: ClassVar[Arguments] = ()
    may_end_early: ClassVar[bool] = False

    pool: str
    namespace: str = FLEET_NAMESPACE
    replicas: int = 0

    def arguments(self) -> Arguments:
        """Return ARGV."""
        args = [*self.first, *_encoder(type(self))(self)]
        while self.may_end_early and args and not args[-1]:
            args.pop()
        return tuple(args)

    def encode(self) -> ScriptCall:
        """Return the call as it goes to Redis."""
        return ScriptCall(self.script, script_keys(self.pool, self.namespace), self.arguments(), self.replicas, self)

    def decode(self, raw: Any) -> R:  # noqa: ANN401  # a raw reply is whatever Redis sends
        """Return what the script answered.

        Raises:
            ConfigurationError: When it is not what this script answers; any of `WRONG_SHAPES` alike.
        """
        raise NotImplementedError


class HashCall(Call["dict[str, str]"], kw_only=True):
    """The arguments of a script that answers with a hash."""

    def decode(self, raw: Any) -> dict[str, str]:  # noqa: ANN401  # as `Call.decode`
        """Return the fields of the hash with their values."""
        return fields_of(raw)


_ENCODERS: dict[type, Callable[[Any], list[str | int]]] = {}


def _encoder(kind: type) -> Callable[[Any], list[str | int]]:
    """Return a function that encodes the fields of a record as a list, in the order of their declaration.

    A field that does not distinguish records (`compare=False`) is left out. The expression is generated once for each
    class: that takes 3 us of a claim; looking at the type of each value in each call took 10.
    """
    if (known := _ENCODERS.get(kind)) is not None:
        return known
    before = len(declared_fields(Call)) if issubclass(kind, Call) else 0
    own = [one for one in declared_fields(kind)[before:] if one.compare]
    home = vars(sys.modules[kind.__module__])
    names: dict[str, Any] = {"written_ports": written_ports, "extra_members": extra_members}
    parts = []
    for one in own:
        form, value = str(one.type), f"record.{one.name}"
        if form.startswith("tuple["):
            member = form.removeprefix("tuple[").removesuffix(", ...]")
            if member in home:
                names[member] = _encoder(home[member])
                value = f"[word for each in {value} for word in {member}(each)]"
            parts += [f"*{value}"] if one is own[-1] else [f"len(record.{one.name})", f"*{value}"]
        elif isinstance(home.get(form), EnumType):
            parts.append(f"str({value})")
        else:
            parts.append(_FORMS.get(form, "{}").format(value))
    made: Callable[[Any], list[str | int]] = eval(f"lambda record: [{', '.join(parts)}]", names)  # noqa: S307  # of our own declarations
    return _ENCODERS.setdefault(kind, made)


_FORMS = {"bool": "int({})", "frozenset[int]": "written_ports({})", "dict[str, Any]": "extra_members({})"}
"""How a field is written that is not one argument as it is, by its declared type."""


def written_ports(ports: Iterable[int]) -> str:
    """Return a set of ports as ranges: `5556,5570-5580`."""
    if not ports:
        return ""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


WRONG_SHAPES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading a reply raises that no script of ours, and no Redis, would give."""

MAX_TIME_MS = 32_503_680_000_000
"""The year 3000: a time beyond it was not written by us, and calendars end soon after."""

ROUNDING_S = 0.01
"""How far two readings of the end of a lease that nobody renewed may be apart: Redis counts in milliseconds."""

MAX_NUMBER = 2**63 - 1
"""The largest fence and pid that Redis, SQL and the kernel can all hold."""

_HOLDER_FIELDS = frozenset(HOLDER_FIELDS)
_read_json = json.JSONDecoder().raw_decode
_compact = json.JSONEncoder(separators=(",", ":")).encode


def text(value: object) -> str:
    """Return one field of a reply as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number(value: object) -> float:
    """Return one field of a reply as a number (a score may be `inf`).

    Raises:
        ConfigurationError: When it is none.
    """
    try:
        return float(value)  # type: ignore[arg-type]  # a number, or the bytes of one
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"Redis answered {shown(text(value))} where a number belongs; is another program writing under alloc:?"
        ) from None


def time_ms(value: object) -> float:
    """Return one field of a reply as a time of the server, in milliseconds.

    Raises:
        ConfigurationError: When it is none, or lies beyond the year 3000.
    """
    found = number(value)
    if 0 <= found <= MAX_TIME_MS:
        return found
    raise ConfigurationError(f"Redis answered {shown(text(value))} where a time belongs; is its clock right?")


def address(value: object) -> str:
    """Return the address that a host advertises; an empty text for what is not an address, whoever wrote it there."""
    found = text(value)
    try:
        return check_address(found) if found else ""
    except InvalidInputError:
        return ""


def unreadable(what: str) -> ConfigurationError:
    """Return the error for a reply of the wrong shape.

    Args:
        what: What was asked for.
    """
    return ConfigurationError(
        f"Redis answered {what} in a form that portlease does not know; is it a Redis or Valkey, "
        "and is another program writing under alloc:?"
    )


def reply_list(reply: object) -> list[Any]:
    """Return a reply that has to be a list.

    Raises:
        ConfigurationError: When it is something else.
    """
    if isinstance(reply, list):
        return reply
    raise ConfigurationError(f"Redis answered {shown(text(reply))} to a script; is this server a Redis or Valkey?")


def fields_of(reply: object) -> dict[str, str]:
    """Return a reply that has to be the fields of a hash, names and values in turn; raises as `reply_list`."""
    found = reply_list(reply)
    return {text(found[at]): text(found[at + 1]) for at in range(0, len(found), 2)}


def lease(
    pool: str,
    value: object,
    *,
    remaining_ms: float,
    now_ms: float,
    token: str | None = None,
    deadline: float | None = None,
    key: str | None = None,
    process: int | None = None,
) -> Lease:
    """Return the lease that a script wrote as JSON.

    Args:
        pool: The pool that it is of.
        value: The text of the lease's key.
        remaining_ms: How long it still lives.
        now_ms: The server's time.
        token: The proof of holding it, for its holder's copy.
        deadline: See `Lease`, for its holder's copy.
        key: The key that it was read from, where one is known, for the error.
        process: See `Lease`, for its holder's copy.

    Raises:
        ConfigurationError: When the text is not a lease.
    """
    raw = text(value)
    try:
        fields, end = _read_json(raw)
        if end != len(raw):
            raise ValueError(raw)
        return Lease(
            pool=pool,
            host=check_name("host", fields["host"]),
            port=check_port(fields["port"]),
            worker=WorkerId.parse(fields["worker"]),
            state=STATES[fields["state"]],
            fence=bounded(fields["fence"]),
            ttl_ms=bounded(fields["ttl_ms"], MAX_TIME_MS),
            granted_at=bounded(fields["granted_at"], MAX_TIME_MS) / 1_000,
            expires_at=bounded(now_ms + remaining_ms, MAX_TIME_MS) / 1_000,
            **holder_fields(fields),
            token=token,
            deadline=deadline,
            process=process,
        )
    except (*WRONG_SHAPES, InvalidInputError):
        raise ConfigurationError(
            f"{f'key {key}' if key else f'a lease key of {pool_key(pool)}'} holds {shown(raw)}, which is not a lease; "
            "another program wrote it: move or delete that key"
        ) from None


def lease_until(lease: Lease, *, remaining_ms: float, now_ms: float) -> Lease:
    """Return a lease that was read before and is the same but for how long it lives; itself when that is the same too.

    Raises:
        ConfigurationError: When Redis answers with something that is not a time.
    """
    expires_at = time_ms(now_ms + remaining_ms) / 1_000
    return lease if abs(lease.expires_at - expires_at) < ROUNDING_S else replace(lease, expires_at=expires_at)


def bounded(value: float | str, most: int = MAX_NUMBER) -> int:
    """Return a number of a lease as a whole one.

    Raises:
        ValueError: When it is none, or not from 0 to `most`; OverflowError and TypeError alike.
    """
    number = int(value)
    if 0 <= number <= most:
        return number
    raise ValueError(value)


def holder_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the holder's fields of a lease in JSON as arguments of `Lease`; missing ones are left out.

    Raises:
        ValueError: When a member has another form; TypeError and AttributeError alike.
    """
    given = {name: fields[name] for name in _HOLDER_FIELDS & fields.keys() if fields[name] is not None}
    if not given:
        return given
    for name in NUMBER_FIELDS & given.keys():
        given[name] = bounded(given[name])
    for name in TEXT_FIELDS & given.keys():
        given[name] = error_line(str(given[name]))
    if "labels" in given:
        given["labels"] = {str(key): str(value) for key, value in given["labels"].items()}
    return given


def extra_members(fields: Mapping[str, Any]) -> str:
    """Return the JSON members that a holder adds to its lease, each with a comma before it; empty ones are left out."""
    given = {name: value for name, value in fields.items() if value}
    return "," + _compact(given)[1:-1] if given else ""


def ask(call: Call[R]) -> Generator[ScriptCall, Any, R]:
    """Run a script and return what it answered: the step of an operation that every script is run by.

    Raises:
        ConfigurationError: When the answer is not one of this script's.
    """
    raw = yield call.encode()
    try:
        return call.decode(raw)
    except WRONG_SHAPES as error:
        raise unreadable(f"the script {call.script}") from error
