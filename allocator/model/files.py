"""Files that people write: settings and pools in TOML, as values. A mistake is one line: file, field, what.

Every command reads its settings here, so that a claim would wait for all that is imported here.

A pool file:

```toml
[pool]
name = "custom"
first = 6000
last = 6100
ttl = "30s"          # and ttl_min, ttl_max, grace, cooldown; all may be left out
scope = "host"       # or "fleet"
spill = true

durability = "none"  # or "replica": a claim waits until one replica has the grant

[pool.conventional]  # may be left out
email = 6000
stripe = [6001, 6002]

[pool.bands]         # ports that only one plugin gets
zendesk = "6010-6019"

[pool.limits]        # how many leases there may be at once
max_per_org = 20
max_per_plugin = 100
max_instances = 4    # of one plugin of one organisation

[pool.limits.orgs]   # in place of max_per_org
org-big = 40

[pool.limits.plugins]
email = 10
```
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from allocator.model.durations import parse_duration_ms, written_duration
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_port, shown
from allocator.model.pools import PoolSpec
from allocator.model.small_files import toml_of
from allocator.model.tables import NameTable, TableNames
from allocator.model.values import Value, declared_fields, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

V = TypeVar("V", bound=Value)

_CALLED = {str: "text", int: "a whole number", bool: "true or false", dict: "a table", list: "a list"}
"""The types of TOML that are used, as they are called in errors."""


class NamesTable(Value):
    """`[database.plugin]` and `[database.organization]`: where names are found when the column is a foreign key."""

    table: str
    key: str = "id"
    name: str = "name"


class DatabaseTable(Value):
    """The `[database]` table of `allocator.toml`: what the table of workers and its columns are called."""

    table: str | None = None
    schema: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    plugin: NamesTable | None = None
    organization: NamesTable | None = None
    refresh_expiry: bool = True

    def names(self) -> TableNames:
        """Return what the file calls the table of workers and its columns.

        Raises:
            InvalidInputError: When a name is not valid, or a column is not known.
        """
        plugin, organization = (
            NameTable(one.table, one.key, one.name) if one else None for one in (self.plugin, self.organization)
        )
        return TableNames.checked(self.table, self.schema, self.columns, self.states, plugin, organization)


class LimitsTable(Value):
    """The `[pool.limits]` table of a pool file."""

    max_per_org: int | None = None
    max_per_plugin: int | None = None
    max_instances: int | None = None
    orgs: dict[str, int] = field(default_factory=dict)
    plugins: dict[str, int] = field(default_factory=dict)


class PoolTable(Value):
    """The `[pool]` table of a pool file."""

    name: str
    first: int
    last: int
    ttl: str = "30s"
    ttl_min: str = "1s"
    ttl_max: str = "24h"
    grace: str = "5s"
    cooldown: str = "1s"
    scope: Literal["host", "fleet"] = "host"
    spill: bool = True
    durability: Literal["none", "replica"] = "none"
    conventional: dict[str, int | list[int]] = field(default_factory=dict)
    bands: dict[str, str] = field(default_factory=dict)
    limits: LimitsTable = field(default_factory=LimitsTable)

    def spec(self) -> PoolSpec:
        """Return the pool that the table describes.

        Raises:
            InvalidInputError: When it contradicts itself.
        """
        return PoolSpec(
            name=self.name,
            first=self.first,
            last=self.last,
            conventional={
                plugin: (ports,) if isinstance(ports, int) else tuple(ports)
                for plugin, ports in self.conventional.items()
            },
            ttl_ms=parse_duration_ms(self.ttl, what="ttl"),
            ttl_min_ms=parse_duration_ms(self.ttl_min, what="ttl_min"),
            ttl_max_ms=parse_duration_ms(self.ttl_max, what="ttl_max"),
            grace_ms=parse_duration_ms(self.grace, what="grace"),
            cooldown_ms=parse_duration_ms(self.cooldown, what="cooldown"),
            scope=self.scope,
            spill=self.spill,
            durability=self.durability,
            bands={plugin: _band(plugin, text) for plugin, text in self.bands.items()},
            max_per_org=self.limits.max_per_org,
            max_per_plugin=self.limits.max_per_plugin,
            max_instances=self.limits.max_instances,
            org_limits=self.limits.orgs,
            plugin_limits=self.limits.plugins,
        )


def _band(plugin: str, text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        return check_port(first), check_port(last)
    except InvalidInputError:
        raise InvalidInputError(f"bands.{plugin}: {shown(text)} is not a range of ports; write 5570-5579") from None


class PoolFile(Value):
    """A pool file."""

    pool: PoolTable


class _MisfitError(Exception):
    """Something in a file is not what it has to be: where that is, and what is wrong."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{shown(where)} {what}")


def _fitted(value: Any, kind: Any, where: str) -> Any:  # noqa: ANN401  # of TOML, and a type
    """Return a value of TOML as a type that a table declares: a plain one, a list, a table, or one of several."""
    origin, inner = get_origin(kind), [one for one in get_args(kind) if one is not NoneType]
    if origin is UnionType:
        return _fitted(value, _of_several(value, inner, where), where)
    if origin is Literal:
        if value not in inner:
            raise _MisfitError(where, f"has to be {' or '.join(map(repr, inner))}; correct it")
        return value
    is_table = origin is None and issubclass(kind, Value)
    plain = dict if is_table else origin or kind
    if type(value) is not plain:
        raise _MisfitError(where, f"has to be {_CALLED[plain]}; correct it")
    if is_table:
        value = _table(value, kind, where)
    elif origin is dict:
        value = {key: _fitted(one, inner[1], f"{where}.{key}") for key, one in value.items()}
    elif origin is list:
        value = [_fitted(one, inner[0], f"{where}.{at}") for at, one in enumerate(value)]
    return value


def _of_several(value: object, kinds: list[Any], where: str) -> Any:  # noqa: ANN401  # a type
    """Return which of several types a value has."""
    if len(kinds) == 1:
        return kinds[0]
    by_plain: dict[type, Any] = {get_origin(one) or one: one for one in kinds}
    if type(value) not in by_plain:
        raise _MisfitError(where, f"has to be {' or '.join(_CALLED[one] for one in by_plain)}; correct it")
    return by_plain[type(value)]


def _table(given: dict[str, Any], kind: type[V], where: str = "") -> V:
    """Return a table of TOML as a value."""
    fields, kinds = declared_fields(kind), get_type_hints(kind)
    found = _entries(given, {one.name: kinds[one.name] for one in fields}, where)
    for one in fields:
        if one.is_required and one.name not in found:
            raise _MisfitError(_inside(where, one.name), "is missing; add it")
    return kind(**found)


def _entries(given: dict[str, Any], kinds: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the entries of a table of TOML, each as its type."""
    found = {}
    for name, value in given.items():
        here = _inside(where, name)
        if name not in kinds:
            raise _MisfitError(here, "is not a known key; correct or delete it")
        found[name] = _fitted(value, kinds[name], here)
    return found


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def parse_settings(path: Path | str, text: str, names: Iterable[str]) -> tuple[dict[str, str], DatabaseTable | None]:
    """Return the settings that an `allocator.toml` gives, and its `[database]` table.

    Args:
        path: The file, for errors.
        text: What it holds.
        names: The settings that it may have, each a text.

    Raises:
        ConfigurationError: When it cannot be right; it names the file and the first wrong field.
    """
    try:
        found = _entries(toml_of(path, text), dict.fromkeys(names, str) | {"database": DatabaseTable})
    except _MisfitError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    database = found.pop("database", None)
    for name, value in found.items():  # which no variable or argument would have kept
        if not value.isprintable():
            raise ConfigurationError(f"{path}: {name} holds a control character; delete it")
    return found, database


def parse_pool(path: Path | str, text: str) -> PoolSpec:
    """Return the pool that a pool file describes.

    Raises:
        ConfigurationError: When the file cannot be right; it names the file and what is wrong.
    """
    try:
        return _table(toml_of(path, text), PoolFile).pool.spec()
    except (_MisfitError, InvalidInputError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def written_pool(pool: PoolSpec) -> str:
    """Return a pool as the text of a pool file."""
    lines = [
        "[pool]",
        f'name = "{pool.name}"',
        f"first = {pool.first}",
        f"last = {pool.last}",
        f'ttl = "{written_duration(pool.ttl_ms)}"',
        f'ttl_min = "{written_duration(pool.ttl_min_ms)}"',
        f'ttl_max = "{written_duration(pool.ttl_max_ms)}"',
        f'grace = "{written_duration(pool.grace_ms)}"',
        f'cooldown = "{written_duration(pool.cooldown_ms)}"',
        f'scope = "{pool.scope}"',
        f"spill = {str(pool.spill).lower()}",
    ]
    if pool.durability != "none":
        lines.append(f'durability = "{pool.durability}"')
    if pool.conventional:
        lines += ["", "[pool.conventional]"]
        by_port = sorted(pool.conventional.items(), key=lambda item: (item[1], item[0]))
        lines += [f'"{plugin}" = {list(ports) if len(ports) != 1 else ports[0]}' for plugin, ports in by_port]
    if pool.bands:
        lines += ["", "[pool.bands]"]
        lines += [f'"{plugin}" = "{first}-{last}"' for plugin, (first, last) in sorted(pool.bands.items())]
    limits = {name: getattr(pool, name) for name in ("max_per_org", "max_per_plugin", "max_instances")}
    given = [f"{name} = {value}" for name, value in limits.items() if value is not None]
    if given:
        lines += ["", "[pool.limits]", *given]
    for table, numbers in (("orgs", pool.org_limits), ("plugins", pool.plugin_limits)):
        if numbers:
            lines += ["", f"[pool.limits.{table}]", *(f'"{name}" = {most}' for name, most in sorted(numbers.items()))]
    return "\n".join(lines)
