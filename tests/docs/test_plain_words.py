"""The field's own terms: words that make a reader stop are in no document, help, message, docstring or Lua head.

The table is what to write instead. An exception is a place where the word is right, with the reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
OF_CODE = re.compile(r"^\s*\**\w+: |`[^`]*`")
"""The name of an argument in front of what it is, and code between prose: names, not prose."""
SOURCES = {path: path.read_text() for path in sorted(ROOT.glob("allocator/**/*.py"))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}

INSTEAD = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\btold\b": "sent, notified, reported, asked",
    r"\b(says?|said)\b": "shows, states, reports, prints, has",
    r"\bso many\b": "the number, that many",
    r"(?<![Tt]here )(?<!where )\b(is|are) no (?!longer\b|such\b|information\b|evidence\b)\w": "is not a",
    r"\b(wait(s|ing)?|stands?|waiters|join(s|ing)?|first|place) in (the )?line\b": "the queue, position",
    r"\bline of (waiters|those who wait)\b": "queue",
    r"\b(tied|ties) (to|the lease)\b": "bound to",
    r"\blets? go\b": "close, drop, end",
    r"\badjacent\b": "contiguous",
    r"\bprocfile\b": "workers file",
    r"\bwords?\b": "fields, arguments, options, text",
    r"\bfares?\b": "the health of",
}

EXCEPTIONS = {
    ("docs/reference/commands.md", "--adjacent"): "the table of old names",
    ("docs/reference/commands.md", "--procfile"): "the table of old names",
    ("docs/reference/commands.md", "`adjacent"): "the table of old names",
    ("allocator/protocol/wire.py", "[word for each in"): "a part of a program that is put together",
    ("allocator/protocol/wire.py", "for word in"): "a part of a program that is put together",
    ("docs/reference/library.md", "adjacent"): "an argument that programs have already",
    ("allocator/client/base.py", "adjacent"): "the same",
    ("allocator/kernel/socket_tables.py", "32-bit word"): "a machine word",
    ("allocator/model/names.py", "shell word"): "the term of the shell's manual",
    ("allocator/model/redis_urls.py", "ssl_password=WORD"): "a placeholder",
    ("allocator/supervisor/guard.py", "$word"): "a variable of a shell program",
    ("allocator/supervisor/guard.py", "read -r word"): "a variable of a shell program",
    ("allocator/supervisor/terminal.py", "read -r word"): "a variable of a shell program",
}


def documents() -> Iterator[tuple[str, int, str]]:
    found = [*ROOT.glob("*.md")]
    found += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("allocator/**/*.md"), ROOT / "deploy/node/README.md"]
    for path in found:
        yield from ((name_of(path), number, line) for number, line in enumerate(path.read_text().splitlines(), 1))


def sources() -> Iterator[tuple[str, int, str]]:
    for path, text in SOURCES.items():
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                for number, line in enumerate(node.value.splitlines(), node.lineno):
                    yield name_of(path), number, line
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and not re.match(r"# (type:|noqa)", token.string):
                yield name_of(path), token.start[0], token.string


def scripts() -> Iterator[tuple[str, int, str]]:
    for path in sorted(ROOT.glob("allocator/**/*.lua")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "--" in line:
                yield name_of(path), number, line.partition("--")[2]


@cache
def prose() -> tuple[tuple[str, int, str], ...]:
    """Return each line that people read, with its file and number."""
    return (*documents(), *sources(), *scripts())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_excepted(name: str, line: str) -> bool:
    return any(name.startswith(path) and text in line for path, text in EXCEPTIONS)


@pytest.mark.parametrize(("word", "instead"), INSTEAD.items())
def test_what_people_read_has_the_plain_word(word: str, instead: str) -> None:
    pattern = re.compile(word)
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, number, line in prose()
        if pattern.search(OF_CODE.sub("", line)) and not is_excepted(name, line)
    ]
    assert found == [], f"write {instead}"


def test_every_exception_is_needed() -> None:
    unused = [
        (path, text)
        for path, text in EXCEPTIONS
        if not any(name.startswith(path) and text in line for name, _, line in prose())
    ]
    assert unused == []
