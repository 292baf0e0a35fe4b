"""The Lua scripts as they are sent: each file with the fragments that it includes, and its SHA-1 for `EVALSHA`.

A line `--@include NAME` is replaced by `lua/lib/NAME.lua`, unless that is there already at the top level of the script,
and a named constant (`local PAGE, PAGES = 64, 4`) stands in the place of its name: one that a Lua function captures
costs an allocation at every run.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from allocator.model.digests import sha1
from allocator.model.values import Value

_LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^([ \t]*)--@include (\w+)\n", re.MULTILINE)
_CONSTANTS = re.compile(r"^[ \t]*local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) = (.+)\n", re.MULTILINE)
_WHOLE_LINE_COMMENT = re.compile(r"^[ \t]*--.*\n", re.MULTILINE)


class Script(Value):
    """One script.

    Attributes:
        name: The transition that it does: `claim`, `renew`, …
        source: Its text, fragments included and comments left out.
        sha1: What `EVALSHA` calls it, in hexadecimal digits.
    """

    name: str
    source: str
    sha1: str


def script_names() -> list[str]:
    """Return the names of all scripts, in alphabetical order."""
    return sorted(file.stem for file in _LUA.glob("*.lua"))


@cache
def script(name: str) -> Script:
    """Return the script of that name.

    Raises:
        FileNotFoundError: When there is none: a mistake in this package, not of its user.
    """
    source = assembled((_LUA / f"{name}.lua").read_text(encoding="utf-8"))
    return Script(name, source, sha1(source.encode()))


def assembled(text: str) -> str:
    """Return the text of a script as it is sent: fragments and constants put in, comments left out."""
    return _WHOLE_LINE_COMMENT.sub("", _with_constants(_with_fragments(text, set())))


def _with_fragments(text: str, known: set[str]) -> str:
    """Put in the fragments that a text includes, but for those that are `known` in all of it."""

    def fragment(include: re.Match[str]) -> str:
        indent, name = include.groups()
        if name in known:
            return ""
        if not indent:
            known.add(name)
        return _with_fragments(
            (_LUA / "lib" / f"{name}.lua").read_text(encoding="utf-8"), known if not indent else {*known}
        )

    return _INCLUDE.sub(fragment, text)


def _with_constants(text: str) -> str:
    values: dict[str, str] = {}
    for names, literals in _CONSTANTS.findall(text):
        values.update(zip(names.split(", "), literals.split(", "), strict=True))
    return re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda word: values.get(word[0], word[0]), _CONSTANTS.sub("", text))
