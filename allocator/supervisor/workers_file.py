"""A workers file: many different workers in one TOML file. A mistake is one line: file, line, field, what.

```toml
[[worker]]
plugin = "email"
org = "org-123"
command = ["node", "worker.js", "--port={port}"]
health = "/health"

[[worker]]
plugin = "stripe"
org = "org-123"
command = "node worker.js --port={port}"
replicas = 2
```

Every field of `fields.FIELDS` may stand in a worker; what the command line gives is the default of all of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from allocator.model.errors import AllocatorError, ConfigurationError, InvalidInputError
from allocator.model.names import shown
from allocator.model.small_files import read_text, toml_of
from allocator.supervisor.fields import convert, spec_of
from allocator.supervisor.groups import CommandError
from allocator.supervisor.replicas import replicated
from allocator.supervisor.spec import CHECKS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from allocator.supervisor.spec import WorkerSpec

_HEADER = re.compile(r"\s*\[\[\s*worker\s*\]\]")
_RELATIVE = ("env_file", "directory")
_NEEDED = ("plugin", "org", "command")
OLD_FIELDS = {"adjacent": "contiguous"}
"""Fields by their old names, which work until version 0.3; `docs/reference/commands.md` lists them."""


def read_workers_file(path: Path, defaults: Mapping[str, Any], environ: Mapping[str, str]) -> list[WorkerSpec]:
    """Return the workers of a workers file.

    Args:
        path: The file.
        defaults: What the command line gave, converted.
        environ: What the workers' environments start from.

    Raises:
        ConfigurationError: When the file cannot be right; it names the file, the line and the field.
        CommandError: When a worker's command does not exist or cannot be executed.
    """
    text, tables = _tables(path)
    specs: list[WorkerSpec] = []
    owners: dict[object, int] = {}
    for number, table in enumerate(tables):
        source = _Source(path, text, number)
        values = {
            **defaults,
            **{OLD_FIELDS.get(field, field): _converted(source, field, value) for field, value in table.items()},
        }
        for field in _NEEDED:
            if field not in values:
                raise ConfigurationError(f"{source.of(None)}: the worker has no {field}; add it")
        for spec in _specs(source, values, environ):
            worker = (spec.claim["org"], spec.plugin, spec.claim.get("instance", 0))
            if worker in owners:
                name = f"{worker[0]}/{worker[1]}#{worker[2]}"
                first = _Source(path, text, owners[worker]).line(None)
                raise ConfigurationError(
                    f"{source.of(None)}: {name} is in line {first} already; give it another instance"
                )
            owners[worker] = number
            specs.append(spec)
    return specs


def _specs(source: _Source, values: Mapping[str, Any], environ: Mapping[str, str]) -> list[WorkerSpec]:
    try:
        specs = replicated(spec_of(values, environ), values.get("replicas", 1))
    except InvalidInputError as error:
        raise ConfigurationError(f"{source.of(None)}: {error}") from None
    first = specs[0]
    for field, check in CHECKS:
        try:
            check(first)
        except CommandError as error:
            raise CommandError(f"{source.of(field)}: {error}", error.status) from None
        except InvalidInputError as error:
            raise ConfigurationError(f"{source.of(field)}: {error}") from None
    return specs


def _converted(source: _Source, field: str, value: object) -> object:
    if field in _RELATIVE:
        value = _beside(source.path, value)
    try:
        return convert(OLD_FIELDS.get(field, field), value)
    except AllocatorError as error:
        raise ConfigurationError(f"{source.of(field)}: {error}") from None


def _beside(workers_file: Path, value: object) -> object:
    """Return a path of a workers file as seen from where the workers file lies."""
    if isinstance(value, list):
        return [_beside(workers_file, each) for each in value]
    return str(workers_file.parent / value) if isinstance(value, str) else value


def _tables(path: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigurationError(f"the workers file {path} does not exist; correct --workers") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigurationError(f"the workers file {path} cannot be read ({why})") from None
    content = toml_of(path, text)
    other = next((key for key in content if key != "worker"), None)
    if other is not None:
        raise ConfigurationError(
            f"{path}:{_line_of_key(text, other)}: {shown(other)} is not known; write [[worker]] tables"
        )
    tables = content.get("worker")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{path}: there are no [[worker]] tables in it; add one for each worker")
    return text, tables


class _Source:
    """Where in a workers file a worker stands."""

    def __init__(self, path: Path, text: str, number: int) -> None:
        self.path = path
        self._lines = text.splitlines()
        self._number = number

    def of(self, field: str | None) -> str:
        where = f"{self.path}:{self.line(field)}"
        return where if field is None else f"{where}: {field}"

    def line(self, field: str | None) -> int:
        """Return the line of a field of this worker; that of its header when the field has none of its own."""
        headers = [at for at, line in enumerate(self._lines) if _HEADER.match(line)]
        if self._number >= len(headers):  # written as an array of inline tables
            return _line_of_key("\n".join(self._lines), "worker")
        begin = headers[self._number]
        end = headers[self._number + 1] if self._number + 1 < len(headers) else len(self._lines)
        if field is not None:
            for at in range(begin + 1, end):
                if re.match(
                    rf"""\s*(?:["']?{re.escape(field)}["']?\s*[.=]|\[\s*worker\.{re.escape(field)}\b)""",
                    self._lines[at],
                ):
                    return at + 1
        return begin + 1


def _line_of_key(text: str, key: str) -> int:
    pattern = re.compile(rf"""\s*(?:\[+\s*)?["']?{re.escape(key)}\b""")
    return next((number for number, line in enumerate(text.splitlines(), start=1) if pattern.match(line)), 1)
