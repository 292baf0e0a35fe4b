"""How listings are written: for people, for pipes, for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from allocator.cli.options import ListFormat
from allocator.model.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence


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
