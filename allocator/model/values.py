"""Frozen values: what a dataclass with slots is, made when the first one of its kind is.

A command makes a handful of the hundred kinds of values that it loads, and `dataclasses` compiles seven functions for
each of them, a third of the time that a claim takes to start. Here a class is only given its slots; its `__init__` is
written when it is called first, and comparing, showing and copying go by the names of its fields.

To type checkers a `Value` is a dataclass, and `dataclasses.fields`, `replace` and `asdict` take it as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

V = TypeVar("V", bound="Value")
_MISSING: Any = object()
_set = object.__setattr__


class Field:
    """What is declared about a field of a value.

    Args:
        default: Its value where none is given.
        default_factory: Makes that value.
        repr: Whether it is shown; secrets are not.
        compare: Whether it tells values apart.
        metadata: What others note about it.

    Attributes:
        name: Its name.
        type: Its annotation, as it is written.
    """

    __slots__ = ("compare", "default", "default_factory", "kw_only", "metadata", "name", "repr", "type")

    def __init__(
        self,
        default: Any = _MISSING,  # noqa: ANN401  # of any type
        default_factory: Callable[[], Any] | None = None,
        *,
        repr: bool = True,  # noqa: A002  # its name in dataclasses
        compare: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.repr = repr
        self.compare = compare
        self.metadata = metadata or {}
        self.kw_only = False
        self.name = self.type = ""

    @property
    def is_required(self) -> bool:
        """Whether a value cannot be made without it."""
        return self.default is _MISSING and self.default_factory is None


def field(**declared: Any) -> Any:  # noqa: ANN401  # a field's type is its annotation's
    """Declare a field of a class; see `Field`."""
    return Field(**declared)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class _Kind(type):
    """The type of the classes of values: gives a class its slots, and no more."""

    __parts__: dict[str, Field]

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        body: dict[str, Any],
        *,
        kw_only: bool = False,
        frozen: bool = True,
        order: bool = False,
    ) -> _Kind:
        parts: dict[str, Field] = {}
        for base in bases:
            parts |= getattr(base, "__parts__", {})
        own: list[str] = []
        for field, kind in body.get("__annotations__", {}).items():
            if kind.startswith("ClassVar"):
                continue
            given = body.pop(field, _MISSING)
            part = given if isinstance(given, Field) else Field(given)
            part.name, part.type, part.kw_only = field, kind, kw_only
            if field not in parts:
                own.append(field)
            parts[field] = part
        positional = tuple([field for field, one in parts.items() if not one.kw_only])
        body |= {"__slots__": tuple(own), "__parts__": parts, "__init__": _first_init, "__match_args__": positional}
        if not frozen:
            body |= {"__setattr__": _set, "__delattr__": object.__delattr__, "__hash__": None}
        if order:
            body["__lt__"] = _is_less
        return super().__new__(cls, name, bases, body)

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **_options: bool) -> None:
        super().__init__(name, bases, body)

    @property
    def __signature__(cls) -> Any:  # noqa: ANN401  # `inspect` is loaded by who asks
        import inspect

        if cls.__init__ is _first_init:  # type: ignore[misc]  # of a class, not of a value
            _write_init(cls)
        found = inspect.signature(cls.__init__)  # type: ignore[misc]  # as above
        return found.replace(parameters=list(found.parameters.values())[1:])


def _first_init(self: Any, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # those of the class
    """Write the class's `__init__`, and call it."""
    _write_init(type(self))
    self.__init__(*arguments, **named)


def _write_init(kind: Any) -> None:  # noqa: ANN401  # a class of values
    parts: dict[str, Field] = kind.__parts__
    known: dict[str, Any] = {"_MISSING": _MISSING}
    is_guarded = kind.__setattr__ is not _set
    ordered = [(field, one) for field, one in parts.items() if not one.kw_only]
    named = [(field, one) for field, one in parts.items() if one.kw_only]
    parameters, lines = ["self"], []
    for field, one in [*ordered, *named]:
        if one.kw_only and "*" not in parameters:
            parameters.append("*")
        value = field
        if one.default_factory is not None:
            known[f"_make_{field}"] = one.default_factory
            parameters.append(f"{field}=_MISSING")
            value = f"_make_{field}() if {field} is _MISSING else {field}"
        elif one.default is not _MISSING:
            known[f"_default_{field}"] = one.default
            parameters.append(f"{field}=_default_{field}")
        else:
            parameters.append(field)
        if is_guarded:  # the slot's own setter does not look for it first, as `object.__setattr__` does
            known[f"_set_{field}"] = getattr(kind, field).__set__
        lines.append(f"_set_{field}(self, {value})" if is_guarded else f"self.{field} = {value}")
    if hasattr(kind, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines or ["pass"]), known)  # noqa: S102  # our own words
    init = known["__init__"]
    init.__qualname__ = f"{kind.__qualname__}.__init__"
    init.__annotations__ = {field: one.type for field, one in parts.items()}
    kind.__init__ = init


def _is_less(self: Any, other: object) -> Any:  # noqa: ANN401  # a value, and whether
    if type(other) is not type(self):
        return NotImplemented
    return _compared(self) < _compared(other)


class _DataclassFields:
    """What `dataclasses` goes by, made when it asks."""

    def __get__(self, value: object, kind: Any = None) -> dict[str, Any]:  # noqa: ANN401  # a class of values
        import dataclasses

        fields = {}
        for field, one in kind.__parts__.items():
            made: Any = dataclasses.field(
                default=dataclasses.MISSING if one.default is _MISSING else one.default,
                default_factory=one.default_factory or dataclasses.MISSING,
                repr=one.repr,
                compare=one.compare,
                metadata=one.metadata,
                kw_only=one.kw_only,
            )
            made.name, made.type, made._field_type = field, one.type, dataclasses._FIELD  # type: ignore[attr-defined]  # noqa: SLF001  # as it makes them itself
            fields[field] = made
        return fields


class Value(metaclass=_Kind):
    """A value with named fields, which are the annotations of its class; frozen unless that shows otherwise."""

    __parts__: ClassVar[dict[str, Field]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash(_compared(self))

    def __repr__(self) -> str:
        shown = (f"{field}={getattr(self, field)!r}" for field, one in type(self).__parts__.items() if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), tuple([getattr(self, field) for field in type(self).__parts__]))


Value.__dataclass_fields__ = _DataclassFields()  # type: ignore[assignment]  # a descriptor of that


def _compared(value: Any) -> tuple[Any, ...]:  # noqa: ANN401  # a value
    return tuple([getattr(value, field) for field, one in type(value).__parts__.items() if one.compare])


def _rebuilt(kind: type[V], values: tuple[Any, ...]) -> V:
    """Return a value that was pickled or copied."""
    made = object.__new__(kind)
    for field, value in zip(kind.__parts__, values, strict=True):
        _set(made, field, value)
    return made


def replace(value: V, /, **changes: Any) -> V:  # noqa: ANN401  # of the fields' types
    """Return a copy of a value with other values of some fields."""
    for field in type(value).__parts__:
        if field not in changes:
            changes[field] = getattr(value, field)
    return type(value)(**changes)


def declared_fields(kind: Any) -> list[Field]:  # noqa: ANN401  # a class of values
    """Return what a class of values declares about its fields, in their order."""
    return list(kind.__parts__.values())
