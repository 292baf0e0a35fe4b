"""Names in code are the field's own terms.

No name of a module, class, function, argument, attribute or Lua local has a word of the table.

An exception is a name that users have already, with the version that drops it.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
INSTEAD = {
    "adjacent": "contiguous",
    "mended": "fixed",
    "fares": "the health of",
    "voices": "console, report",
    "opening": "a store, a connection pool",
    "utils": "what the module is for",
    "helpers": "what the module is for",
    "common": "what the module is for",
    "misc": "what the module is for",
}
EXCEPTIONS = {
    ("allocator/client/base.py", "adjacent"): "an argument of programs that exist; dropped in 0.3",
}
_LUA_LOCAL = re.compile(r"\blocal (?:function )?([a-z_][\w, ]*)")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def names_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@cache
def names() -> frozenset[tuple[str, str]]:
    """Return each name with the file that makes it."""
    found: set[tuple[str, str]] = set()
    for path in ROOT.glob("allocator/**/*"):
        file = str(path.relative_to(ROOT))
        if path.suffix == ".py":
            found |= {(file, name) for name in (path.stem, *names_of(ast.parse(path.read_text())))}
        elif path.suffix == ".lua":
            code = re.sub(r"--.*", "", path.read_text())
            found |= {(file, name.strip()) for names in _LUA_LOCAL.findall(code) for name in names.split(",")}
    return frozenset(found)


@pytest.mark.parametrize(("word", "instead"), INSTEAD.items())
def test_a_name_has_the_fields_own_term(word: str, instead: str) -> None:
    found = [one for one in names() if word in {part.lower() for part in _PART.findall(one[1])}]
    assert sorted(one for one in found if one not in EXCEPTIONS) == [], f"call it {instead}"


def test_every_exception_is_a_name_that_is_there() -> None:
    assert EXCEPTIONS.keys() - names() == set()
