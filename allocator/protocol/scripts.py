"""The Lua scripts as they are sent: each file with the fragments that it includes, and its SHA-1 for `EVALSHA`.

Named constants (`local PAGE, PAGES = 64, 4`) are put in the place of their names: a constant that a Lua function
captures costs an allocation at every run of the script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

_LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^[ \t]*--@include (\w+)\n", re.MULTILINE)
_CONSTANTS = re.compile(r"^[ \t]*local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) = (.+)\n", re.MULTILINE)
_WHOLE_LINE_COMMENT = re.compile(r"^[ \t]*--.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One script.

    Attributes:
        name: The transition that it does: `claim`, `renew`, …
        source: Its text, fragments included and comments left out.
        sha1: What `EVALSHA` calls it, in hexadecimal digits.
    """

    name: str
    source: str
    sha1: str


@cache
def script(name: str) -> Script:
    """Return the script of that name.

    Raises:
        FileNotFoundError: When there is none: a mistake in this package, not of its user.
    """
    source = _WHOLE_LINE_COMMENT.sub("", _with_constants(_with_fragments(_LUA / f"{name}.lua")))
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def _with_fragments(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: _with_fragments(_LUA / "lib" / f"{match[1]}.lua"), text)


def _with_constants(text: str) -> str:
    values: dict[str, str] = {}
    for names, literals in _CONSTANTS.findall(text):
        values.update(zip(names.split(", "), literals.split(", "), strict=True))
    return re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda word: values.get(word[0], word[0]), _CONSTANTS.sub("", text))


def script_names() -> list[str]:
    """Return the names of all scripts, in alphabetical order."""
    return sorted(path.stem for path in _LUA.glob("*.lua"))
