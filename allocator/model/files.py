"""Files that people write: settings and pools in TOML, as Pydantic models. A mistake is one line: file, field, what.

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

from pathlib import Path  # noqa: TC003  # Pydantic reads the annotation
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from allocator.model.durations import parse_duration_ms, written_duration
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_port, shown
from allocator.model.pools import PoolSpec
from allocator.model.reading import toml_of
from allocator.model.tables import NameTable, TableNames

if TYPE_CHECKING:
    from collections.abc import Iterable

M = TypeVar("M", bound=BaseModel)


class NamesTable(BaseModel):
    """`[database.plugin]` and `[database.organization]`: where names are found when the column is a foreign key."""

    model_config = ConfigDict(extra="forbid", strict=True)

    table: str
    key: str = "id"
    name: str = "name"


class DatabaseTable(BaseModel):
    """The `[database]` table of `allocator.toml`: what the table of workers and its columns are called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    table: str | None = None
    schema_: str | None = Field(default=None, alias="schema")
    columns: dict[str, str] = {}
    states: dict[str, str] = {}
    plugin: NamesTable | None = None
    organization: NamesTable | None = None
    refresh_expiry: bool = True


class SettingsTables(BaseModel):
    """The tables that `allocator.toml` may hold, beside its settings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    database: DatabaseTable = DatabaseTable()

    def given(self) -> dict[str, str]:
        """Return the settings that the file gives.

        Raises:
            InvalidInputError: When one holds a control character, which no variable or argument would have kept.
        """
        found = {name: value for name, value in self.model_dump(exclude={"database"}).items() if value is not None}
        for name, value in found.items():
            if not value.isprintable():
                raise InvalidInputError(f"{name} holds a control character; delete it")
        return found

    def table_names(self) -> TableNames:
        """Return what the file calls the table of workers and its columns.

        Raises:
            InvalidInputError: When a name is not valid, or a column is not known.
        """
        given = self.database
        plugin, organization = (
            NameTable(one.table, one.key, one.name) if one else None for one in (given.plugin, given.organization)
        )
        return TableNames.checked(given.table, given.schema_, given.columns, given.states, plugin, organization)


def settings_file(names: Iterable[str]) -> type[SettingsTables]:
    """Return the model of `allocator.toml`: a text or nothing for each of these settings, and its tables."""
    words: dict[str, Any] = dict.fromkeys(names, (str | None, None))
    return create_model("SettingsFile", __base__=SettingsTables, **words)


class LimitsTable(BaseModel):
    """The `[pool.limits]` table of a pool file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_per_org: int | None = None
    max_per_plugin: int | None = None
    max_instances: int | None = None
    orgs: dict[str, int] = {}
    plugins: dict[str, int] = {}


class PoolTable(BaseModel):
    """The `[pool]` table of a pool file."""

    model_config = ConfigDict(extra="forbid", strict=True)

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
    conventional: dict[str, int | list[int]] = {}
    bands: dict[str, str] = {}
    limits: LimitsTable = LimitsTable()

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


class PoolFile(BaseModel):
    """A pool file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pool: PoolTable


def parse_toml(path: Path | str, text: str, model: type[M]) -> M:
    """Return the content of a TOML file as `model`.

    Raises:
        ConfigurationError: When it is not TOML or does not fit; it names the file and the first wrong field.
    """
    try:
        return model.model_validate(toml_of(path, text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(f"{path}: {shown(where)} is not a known key; correct or delete it") from None
        raise ConfigurationError(f"{path}: {shown(where)}: {first['msg']}; correct it") from None


def parse_pool(path: Path | str, text: str) -> PoolSpec:
    """Return the pool that a pool file describes.

    Raises:
        ConfigurationError: When the file cannot be right; it names the file and what is wrong.
    """
    table = parse_toml(path, text, PoolFile).pool
    try:
        return table.spec()
    except InvalidInputError as error:
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
