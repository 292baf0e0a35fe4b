"""The names that a piece of Lua uses without defining or receiving them: what `luac -l` lists as globals."""

from __future__ import annotations

import re

GIVEN = frozenset(
    {"KEYS", "ARGV", "redis", "string", "math", "table", "tonumber", "tostring", "type", "pairs", "ipairs", "next"}
    | {"select", "unpack", "error", "pcall"}
)
"""What Redis gives to every script."""

_KEYWORDS = frozenset(
    {"and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not"}
    | {"or", "repeat", "return", "then", "true", "until", "while"}
)
_TOKEN = re.compile(
    r"--[^\n]*|\[\[.*?\]\]|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
    r"|[A-Za-z_]\w*|\d[\w.]*|\.\.\.|\.\.|[=~<>]=|\S",
    re.DOTALL,
)
_BEGINS, _ENDS = frozenset({"do", "then", "repeat"}), frozenset({"end", "until", "elseif"})


def undefined(lua: str) -> set[str]:
    """Return the names that are neither local, a parameter, nor given by Redis."""
    tokens = [one for one in _TOKEN.findall(lua) if not one.startswith("--")]
    scopes: list[set[str]] = [set(GIVEN)]
    brackets: list[str] = []
    coming: set[str] = set()
    found: set[str] = set()
    at = 0
    while at < len(tokens):
        token, before, after = tokens[at], tokens[at - 1] if at else "", "".join(tokens[at + 1 : at + 2])
        if token == "local" and after != "function":
            at, names = _names(tokens, at + 1)
            scopes[-1] |= names
            continue
        if token == "function":
            at = _function(tokens, at, scopes, is_local=before == "local")
            continue
        if token == "for":
            at, coming = _names(tokens, at + 1)
            continue
        if token in _ENDS or token == "else":
            scopes.pop()
        if token in _BEGINS or token == "else":
            scopes.append(set(coming))
            coming = set()
        if token in "{([":
            brackets.append(token)
        elif token in "})]":
            brackets.pop()
        is_name = re.fullmatch(r"[A-Za-z_]\w*", token) is not None and token not in _KEYWORDS
        is_key = brackets[-1:] == ["{"] and before in {"{", ","} and after == "="
        if is_name and before not in {".", ":"} and not is_key and not any(token in one for one in (*scopes, coming)):
            found.add(token)
        at += 1
    return found


def _names(tokens: list[str], at: int) -> tuple[int, set[str]]:
    """Return the names of a list, and where it ends."""
    names = {tokens[at]}
    while tokens[at + 1] == ",":
        at += 2
        names.add(tokens[at])
    return at + 1, names


def _function(tokens: list[str], at: int, scopes: list[set[str]], *, is_local: bool) -> int:
    """Enter a function; return where its body begins."""
    if tokens[at + 1] != "(":
        at += 1
        if is_local:
            scopes[-1].add(tokens[at])
    end = tokens.index(")", at)
    scopes.append({one for one in tokens[at + 2 : end] if one != ","})
    return end + 1
