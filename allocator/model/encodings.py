"""What stands for a name elsewhere: its digest, or the name in the letters that another system has room for.

`hashlib` loads OpenSSL for SHA-1 and SHA-256, which takes longer than a claim; Python has both in modules of its own.

The rule of this file: each alphabet has one encoding, and it can be undone: two names never become one, also where the
other system ignores case; a name that needs no encoding stays as it is. May not live here: what a system's file looks
like.
"""

from __future__ import annotations

import re
import string
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from allocator.model.errors import InvalidInputError
from allocator.model.names import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOWER = frozenset(string.ascii_lowercase)
_UPPER = frozenset(string.ascii_uppercase)
_NAMES = frozenset(string.ascii_letters + string.digits + "._-+@/")
"""Every character that a name may have."""
MAX_LABEL_LENGTH, MAX_HOST_LENGTH = 63, 253
"""Of a host name. Source: RFC 1035, 2.3.4."""

_HOMES = {"sha1": ("_sha1",), "sha256": ("_sha2", "_sha256")}
"""Where these digests are, by version of Python; a build of its own may have left them out."""


def sha1(data: bytes) -> str:
    """Return the SHA-1 of some bytes in hexadecimal digits."""
    return str(_function("sha1")(data, usedforsecurity=False).hexdigest())


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal digits."""
    return str(_function("sha256")(data, usedforsecurity=False).hexdigest())


def _function(name: str) -> Any:  # noqa: ANN401  # a function of a module that has no types
    for home in _HOMES[name]:
        try:
            return getattr(import_module(home), name)
        except ImportError:
            continue
    return getattr(import_module("hashlib"), name)


class Alphabet:
    """An encoding of names.

    Args:
        separator: What stands between a service's plugin and its organisation.
        codes: What a character becomes; one that is not here stays.
        capital: What goes before a capital letter, which is then written small; None where capitals stay.
        raised: Whether small letters are written as capitals, and capitals after `capital` as they are.
        first: What a character becomes at the start of a name, where that differs.
        lone_hyphen: What a hyphen becomes that no plain character follows; None where a hyphen is always one.
    """

    def __init__(
        self,
        separator: str,
        codes: Mapping[str, str],
        *,
        capital: str | None = None,
        raised: bool = False,
        first: Mapping[str, str] | None = None,
        lone_hyphen: str | None = None,
    ) -> None:
        self.separator = separator
        self.codes = codes
        self.capital = capital
        self.raised = raised
        self.first = first or {}
        self.lone_hyphen = lone_hyphen

    def encode(self, name: str) -> str:
        """Return a name in this alphabet."""
        parts = []
        for at, character in enumerate(name):
            if at == 0 and character in self.first:
                parts.append(self.first[character])
            elif character == "-" and self.lone_hyphen is not None and not self._is_plain(name[at + 1 : at + 2]):
                parts.append(self.lone_hyphen)
            else:
                parts.append(self._code(character))
        return "".join(parts)

    def decode(self, text: str) -> str:
        """Return the name that `encode` made this of."""
        names, codes = [], self._codes
        start = next((one for one in self.first if text.startswith(self.first[one])), None)
        if start is not None:
            names.append(start)
            text = text[len(self.first[start]) :]
        names += [codes.get(code, code) for code in self._pattern.findall(text)]
        return "".join(names)

    def service(self, plugin: str, org: str) -> str:
        """Return the name of a service: its plugin, the separator, its organisation."""
        return f"{self.encode(plugin)}{self.separator}{self.encode(org)}"

    def _code(self, character: str) -> str:
        if character in self.codes:
            return self.codes[character]
        if character in _UPPER and self.capital is not None:
            return self.capital + (character if self.raised else character.lower())
        return character.upper() if self.raised else character

    def _is_plain(self, character: str) -> bool:
        return character.isalnum() and (character not in _UPPER or self.capital is None)

    @cached_property
    def _codes(self) -> dict[str, str]:
        pieces = {self._code(character): character for character in _NAMES}
        return pieces if self.lone_hyphen is None else pieces | {self.lone_hyphen: "-"}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._codes, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)


_TILDE = {".": "..", "@": "~a", "/": "~s"}

PROXY = Alphabet(".", _TILDE)
"""Services of Traefik, clusters of Envoy: any characters but those that mean something in their files."""

NGINX = Alphabet(".", _TILDE, capital="~c")
"""Upstreams of nginx, which ignores case. All of it may stand in the path of a URL."""

HAPROXY = Alphabet(".", {".": "..", "+": ":", "@": "::a", "/": "::s"})
"""Backends of haproxy: letters, digits and `-_.:`."""

HOST = Alphabet(
    ".",
    {".": "--d", "_": "--u", "+": "--p", "@": "--a", "/": "--s"},
    capital="--c",
    first={"@": "x--a"} | {letter: f"x--i{letter.lower()}" for letter in sorted(_UPPER)},
    lone_hyphen="--h",
)
"""Labels of a host name: letters, digits and hyphens, in any case, no hyphen at either end."""

ENVIRONMENT = Alphabet(
    "__",
    {"-": "_", ".": "d", "_": "u", "+": "p", "@": "a", "/": "s"},
    capital="c",
    raised=True,
    first={digit: f"_{digit}" for digit in string.digits},
    lone_hyphen="h",
)
"""Variables: capitals and digits for small letters and digits, `_` for a hyphen, a small letter for anything rarer."""

FILE = Alphabet("@", {"@": "~a", "/": "~s"}, capital="~c")
"""Names of files, of which some systems ignore the case."""


def host_name(plugin: str, org: str) -> str | None:
    """Return the host name of a service, without a suffix; None when it is longer than a host name can be."""
    labels = (HOST.encode(plugin), HOST.encode(org))
    is_short = all(len(label) <= MAX_LABEL_LENGTH for label in labels)
    return ".".join(labels) if is_short and sum(map(len, labels)) < MAX_HOST_LENGTH - len(".plugin") else None


def service_of_host(name: str) -> tuple[str, str]:
    """Return the plugin and the organisation that a host name stands for.

    A dot in the organisation may stand as it is.

    Raises:
        InvalidInputError: When it stands for none.
    """
    plugin, dot, org = name.partition(".")
    if not plugin or not dot or not org:
        raise InvalidInputError(f"{shown(name)} names no service; write PLUGIN.ORG")
    return HOST.decode(plugin), ".".join(map(HOST.decode, org.split(".")))
