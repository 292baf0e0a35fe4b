"""How leases and rows are written: for people, for pipes, for programs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from allocator.cli.options import Format, ListFormat
from allocator.model.errors import printable
from allocator.model.names import environment_names, port_variable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from allocator.model.leases import Lease


def write_lease(lease: Lease, form: Format) -> None:
    """Write a lease that this command holds: the port alone, an object, or variables."""
    if form is Format.TEXT:
        print(lease.port)
    elif form is Format.JSON:
        write_json(lease.as_json(with_token=True))
    else:
        variables = {
            "PORT": str(lease.port),
            **dict.fromkeys(environment_names(lease.plugin), str(lease.port)),
            "ALLOCATOR_HOST": lease.host,
            "ALLOCATOR_FENCE": str(lease.fence),
        }
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}" if form is Format.SHELL else f"{name}={value}")


def write_json(value: object) -> None:
    """Write one JSON value: indented on a terminal, on one line into a pipe."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def write_rows(headings: Sequence[str], rows: Sequence[Sequence[object]], form: ListFormat) -> None:
    """Write a table: aligned columns under headings, or an array of objects."""
    if form is ListFormat.JSON:
        keys = [heading.lower().replace(" ", "_") for heading in headings]
        write_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    texts = [
        [str(heading) for heading in headings],
        *[[_cell(cell) for cell in row] for row in rows],
    ]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headings))]
    for row in texts:
        print(printable("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def write_named(leases: Mapping[str, Lease], form: Format) -> None:
    """Write several leases of one worker: `name=port` a line, an object by name, or variables."""
    if form is Format.JSON:
        write_json({name: lease.as_json(with_token=True) for name, lease in leases.items()})
        return
    if form is Format.TEXT:
        for name, lease in leases.items():
            print(f"{name}={lease.port}")
        return
    write_lease(next(iter(leases.values())), form)
    for name, lease in leases.items():
        variable = port_variable(name)
        print(f"export {variable}={lease.port}" if form is Format.SHELL else f"{variable}={lease.port}")
