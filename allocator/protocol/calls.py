"""Calls: the typed arguments of a script (`signatures/` has a class for each), and the same as they go to Redis.

The rule of this floor: nobody but a signature knows where in ARGV or in a reply something stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from allocator.protocol.decode import extra_members
from allocator.protocol.keys import FLEET_SPACE, script_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

R = TypeVar("R")
Words = tuple[str | int, ...]
UNKNOWN_AGE_MS = 10**12
"""For how long a host has run of which nobody knows: 31 years, so that it takes no name over from a live one."""


@dataclass(frozen=True, slots=True)
class ScriptCall:
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
    args: Words = ()
    replicas: int = 0
    signature: Call[Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[R]):
    """The arguments of a script; a subclass adds its own, in the order of ARGV.

    A whole number and a text are one argument, a set of ports one with ranges, a mapping one with the members that it
    adds to a lease's JSON. Records in a tuple are the arguments of each in turn, with their number before them where
    more fields follow.

    Attributes:
        script: The script, of the class.
        first: Arguments that are the same in every call of the class; they come before the fields.
        may_end_early: Whether arguments at the end that are empty or 0 are left out, of the class.
        pool: The pool that it is about.
        space: Where a port number is unique: a host, or `*` for the whole fleet.
        replicas: How many replicas have to have what it wrote; the reply then says how many had it in time.
    """

    script: ClassVar[str]
    first: ClassVar[Words] = ()
    may_end_early: ClassVar[bool] = False

    pool: str
    space: str = FLEET_SPACE
    replicas: int = 0

    def arguments(self) -> Words:
        """Return ARGV."""
        args: list[str | int] = [*self.first]
        *names, last = _argument_names(type(self)) or ("",)
        for name in names:
            _append(args, getattr(self, name), counted=True)
        if last:
            _append(args, getattr(self, last))
        while self.may_end_early and args and not args[-1]:
            args.pop()
        return tuple(args)

    def encode(self) -> ScriptCall:
        """Return the call as it goes to Redis."""
        return ScriptCall(self.script, script_keys(self.pool, self.space), self.arguments(), self.replicas, self)

    def decode(self, raw: Any) -> R:  # noqa: ANN401  # a raw reply is whatever Redis sends
        """Return what the script answered.

        Raises:
            ConfigurationError: When it is not what this script answers; any of `WRONG_SHAPES` alike.
        """
        raise NotImplementedError


_NAMES: dict[type, tuple[str, ...]] = {}


def _argument_names(kind: type) -> tuple[str, ...]:
    known = _NAMES.get(kind)
    if known is None:
        before = len(fields(Call)) if issubclass(kind, Call) else 0
        known = _NAMES[kind] = tuple(one.name for one in fields(kind))[before:]
    return known


def _append(args: list[str | int], value: object, *, counted: bool = False) -> None:
    kind = type(value)
    if kind is str or kind is int:
        args.append(value)  # type: ignore[arg-type]  # seen in the line above
    elif kind is tuple:
        members: tuple[object, ...] = value  # type: ignore[assignment]  # as above
        if counted:
            args.append(len(members))
        for member in members:
            if type(member) is str or type(member) is int:
                args.append(member)
            else:
                for name in _argument_names(type(member)):
                    _append(args, getattr(member, name))
    elif isinstance(value, bool):
        args.append(int(value))
    elif isinstance(value, frozenset):
        args.append(written_ports(value))
    elif isinstance(value, dict):
        args.append(extra_members(value))
    else:
        args.append(str(value))


def written_ports(ports: Iterable[int]) -> str:
    """Return a set of ports as ranges: `5556,5570-5580`."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
