"""The Lua scripts as they are sent: each file with the fragments that it includes, and its SHA-1 for `EVALSHA`.

Named constants (`local PAGE, PAGES = 64, 4`) are put in the place of their names, and macros (`--@define`) in the place
of their calls: a constant that a Lua function captures, and each Lua function, costs allocations at every run of the
script.
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
_MACROS = re.compile(r"^[ \t]*--@define (\w+)\((.*?)\)\s+(.+\n(?:[ \t]*--@  .+\n)*)", re.MULTILINE)
_MACRO_WORD = re.compile(r"'[^']*'|\.\.\.|\b[a-z]\w*\b")
_MACRO_GOES_ON = re.compile(r"\s*(?:^|\n)[ \t]*--@  ")
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
    source = assembled(with_fragments(_LUA / f"{name}.lua"))
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def assembled(text: str) -> str:
    """Return a script with its fragments as it is sent: constants and macros put in, comments left out."""
    return _WHOLE_LINE_COMMENT.sub("", _with_constants(_with_macros(text)))


def with_fragments(file: Path) -> str:
    """Return a script's text with the fragments that it includes."""
    text = file.read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: with_fragments(_LUA / "lib" / f"{match[1]}.lua"), text)


def _with_macros(text: str) -> str:
    """Replace each call of a macro by its text, in which each parameter stands for what it was called with."""
    macros = {
        name: (params.split(", "), _MACRO_GOES_ON.sub(" ", body.strip()))
        for name, params, body in _MACROS.findall(text)
    }
    text = _WHOLE_LINE_COMMENT.sub("", _MACROS.sub("", text))
    return _called(text, macros, re.compile(rf"\b({'|'.join(macros)})\(")) if macros else text


def _called(text: str, macros: dict[str, tuple[list[str], str]], names: re.Pattern[str]) -> str:
    done, at = "", 0
    while found := names.search(text, at):
        params, body = macros[found[1]]
        given, end = _arguments(text, found.end())
        if params[-1] == "...":
            most = len(params) - 1
            given = [*given[:most], "".join(f", {one}" for one in given[most:])]
            body = body.replace(", ...", "...")
        words = dict(zip(params, given, strict=True))
        body = _MACRO_WORD.sub(lambda word, words=words: words.get(word[0], word[0]), body)  # type: ignore[misc]  # bound now
        done, at = done + text[at : found.start()] + _called(body, macros, names), end
    return done + text[at:]


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call whose list begins at `start`, and where the call ends."""
    depth, quoted, given = 0, False, [""]
    for at in range(start, len(text)):
        char = text[at]
        if char == "'":
            quoted = not quoted
        if not quoted:
            if char == ")" and depth == 0:
                return [one.strip() for one in given], at + 1
            if char == "," and depth == 0:
                given.append("")
                continue
            depth += (char in "({[") - (char in ")}]")
        given[-1] += char
    raise ValueError(f"a call of a macro has no end: {text[start - 40 : start + 40]!r}")


def _with_constants(text: str) -> str:
    values: dict[str, str] = {}
    for names, literals in _CONSTANTS.findall(text):
        values.update(zip(names.split(", "), literals.split(", "), strict=True))
    return re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda word: values.get(word[0], word[0]), _CONSTANTS.sub("", text))


def script_names() -> list[str]:
    """Return the names of all scripts, in alphabetical order."""
    return sorted(path.stem for path in _LUA.glob("*.lua"))
