"""The options that commands have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from allocator.cli import completion
from allocator.model.settings import SETTINGS

_COMPLETED = {"pool": completion.pools, "host": completion.hosts}

OPTIONS: dict[str, Any] = {
    name: typer.Option(declared.flag, help=declared.help, metavar=declared.metavar, autocompletion=_COMPLETED.get(name))
    for name, declared in SETTINGS.items()
    if declared.has_flag
}
"""The option of each setting that has one, as the setting is declared."""

PoolOption = Annotated[str | None, OPTIONS["pool"]]
HostOption = Annotated[str | None, OPTIONS["host"]]
AdvertiseOption = Annotated[str | None, OPTIONS["advertise"]]
RedisOption = Annotated[str | None, OPTIONS["redis_url"]]
DatabaseOption = Annotated[str | None, OPTIONS["database_url"]]
ConfigOption = Annotated[str | None, OPTIONS["config"]]


class Format(StrEnum):
    """How a command writes its data."""

    TEXT = "text"
    JSON = "json"
    ENV = "env"
    SHELL = "shell"


class ListFormat(StrEnum):
    """How a command writes a listing."""

    TEXT = "text"
    JSON = "json"


LeaseFormat = Annotated[Format, typer.Option("--format", help="Output format.")]
RowsFormat = Annotated[ListFormat, typer.Option("--format", help="Output format.")]
