"""The Lua scripts as they are sent: each file with the fragments that it includes, and its SHA-1 for `EVALSHA`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

_LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^--@include (\w+)\n", re.MULTILINE)
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
    text = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
    source = _INCLUDE.sub(lambda match: (_LUA / "lib" / f"{match[1]}.lua").read_text(encoding="utf-8"), text)
    source = _WHOLE_LINE_COMMENT.sub("", source)
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def script_names() -> list[str]:
    """Return the names of all scripts, in alphabetical order."""
    return sorted(path.stem for path in _LUA.glob("*.lua"))
