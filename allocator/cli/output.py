"""How listings are written: for people, for pipes, for programs."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING

from allocator.cli.options import ListFormat
from allocator.model.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


ALIGNED = 1_000
"""Rows of a table that are in memory at once, to be aligned."""


def write_json(value: object) -> None:
    """Write one JSON value: indented on a terminal, on one line into a pipe."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def write_array(values: Iterable[object]) -> None:
    """Write an array of JSON values as they come: indented on a terminal, on one line into a pipe."""
    indent = 2 if sys.stdout.isatty() else None
    between = ""
    print("[", end="")
    for value in values:
        print(between + json.dumps([value], indent=indent)[1:-1].rstrip(), end="")
        between = "," if indent else ", "
    print("\n]" if indent and between else "]", flush=True)


def write_rows(headings: Sequence[str], rows: Iterable[Sequence[object]], form: ListFormat) -> None:
    """Write a table as its rows come: aligned columns under headings, a thousand rows at a time, or an array."""
    if form is ListFormat.JSON:
        keys = [heading.lower().replace(" ", "_") for heading in headings]
        write_array(dict(zip(keys, row, strict=True)) for row in rows)
        return
    remaining, widths = iter(rows), [0] * len(headings)
    texts = [list(headings), *_cells(remaining)]
    while texts:
        widths = [max(width, *(len(row[column]) for row in texts)) for column, width in enumerate(widths)]
        for row in texts:
            print(printable("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
        texts = _cells(remaining)


def _cells(rows: Iterator[Sequence[object]]) -> list[list[str]]:
    return [[_cell(cell) for cell in row] for row in islice(rows, ALIGNED)]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
