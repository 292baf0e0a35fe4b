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
    r"adjacent": "contiguous",
    r"desk": "a context",
    r"talks?": "a console, a report, messages",
    r"voices?": "a console, a report",
    r"(tied|kin|kinship)": "bound; the family of a process",
    r"(told|tells?|said|says?)": "sent, notified, reported; states, shows",
    r"mend(s|ed|ing)?": "fix",
    r"fares?": "the health of",
    r"in_line": "in the queue",
    r"places?": "an address, a position, a slot",
    r"spaces?": "a namespace",
    r"let_go": "end, close",
    r"(take|takes|taken|took)_in": "reap, apply, count",
    r"opening": "a store, a connection pool",
    r"heed(s|ed)?": "handle, obey",
    r"words?": "fields, arguments, options, text",
    r"procfile": "a workers file",
    r"(theatre|troupe|scenes?|cast|plays?)": "history, model, scheduler, faults, clients",
    r"(utils|helpers|common|misc)": "what the module is for",
}
"""What to write instead of a word that stands in a name between underscores or capitals."""
EXCEPTIONS = {
    ("allocator/client/base.py", "adjacent"): "an argument of programs that exist; dropped in 0.3",
    ("allocator/operations/hosts.py", "place"): "to choose a host for a worker: the schedulers' term",
    ("allocator/protocol/lua/place.lua", "place"): "the same",
    ("allocator/protocol/signatures/host.py", "PlaceCall"): "the same",
    ("allocator/operations/hosts.py", "PLACE_PAGE"): "the same",
    ("tests/docs/test_plain_words.py", "test_plain_words"): "the table's own test",
    ("tests/docs/test_plain_words.py", "word"): "the same",
    ("tests/docs/test_plain_words.py", "test_what_people_read_has_the_plain_word"): "the same",
    ("tests/docs/test_plain_names.py", "word"): "the same",
}
ACTIVITIES = {
    "blocking": "an adjective",
    "listing": "a thing",
    "recording": "a thing",
    "timing": "a thing",
    "tracing": "the field's term",
    "fuzzing": "the field's term",
    "rolling": "an adjective, of restarts",
}
"""Modules whose names end as an activity's do, and are not one."""
_LUA_LOCAL = re.compile(r"\blocal (?:function )?([a-z_][\w, ]*)")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_PROGRAMS = ("allocator/**/*.py", "allocator/**/*.lua", "scripts/**/*.py", "tests/**/*.py")


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
def names() -> tuple[tuple[str, str, str], ...]:
    """Return each name with the file that makes it, and its parts in lower case between underscores."""
    found: set[tuple[str, str]] = set()
    for path in (path for pattern in _PROGRAMS for path in ROOT.glob(pattern)):
        file = str(path.relative_to(ROOT))
        found.add((file, path.stem))
        if path.suffix == ".py":
            found |= {(file, name) for name in names_of(ast.parse(path.read_text()))}
        else:
            code = re.sub(r"--.*", "", path.read_text())
            found |= {(file, name.strip()) for names in _LUA_LOCAL.findall(code) for name in names.split(",")}
    return tuple((file, name, f"_{'_'.join(_PART.findall(name)).lower()}_") for file, name in sorted(found))


@pytest.mark.parametrize(("word", "instead"), INSTEAD.items())
def test_a_name_has_the_fields_own_term(word: str, instead: str) -> None:
    pattern = re.compile(f"_{word}_")
    found = [(file, name) for file, name, parts in names() if pattern.search(parts)]
    assert [one for one in found if one not in EXCEPTIONS] == [], f"call it {instead}"


def test_a_module_is_named_for_a_thing_and_not_for_an_activity() -> None:
    modules = [path for pattern in _PROGRAMS for path in ROOT.glob(pattern) if not path.name.startswith("test_")]
    assert [str(path) for path in modules if path.stem.endswith("ing") and path.stem not in ACTIVITIES] == []


def test_every_exception_is_a_name_that_is_there() -> None:
    assert EXCEPTIONS.keys() - {(file, name) for file, name, _ in names()} == set()
