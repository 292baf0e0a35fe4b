"""Names and numbers that people type: pools, hosts, organisations, plugins, instances, ports, tokens.

The rule of this file: a value that passed here is safe in a Redis key, in JSON and in a shell word without
any quoting, because the alphabet has no colon, brace, quote, space or control character. A plugin may have the name of
an npm package, with a `@` and a `/`: what has no room for those takes it through `allocator.model.encodings`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from allocator.model.errors import InvalidInputError
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NAME_LENGTH = 128
"""Longest name in characters: room for a UUID with a prefix, short enough that a key stays under 512 bytes."""

MAX_PACKAGE_LENGTH = 214
"""Longest name of an npm package, its scope included. Source: `validate-npm-package-name`."""

MAX_INSTANCE = 99_999
PORT_MIN = 1
PORT_MAX = 65_535
MAX_LABELS = 16
TOKEN_LENGTH = 32
MAX_LABEL_VALUE_LENGTH = 256

_REMEMBERED = 1_024
"""As many names, and as many workers, are known to be valid without being read again."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_match_name = lru_cache(_REMEMBERED)(_NAME.fullmatch)
_PACKAGE = re.compile(r"@[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*", re.ASCII)
_PORT_DIGITS = re.compile(r"[0-9]{1,5}", re.ASCII)
_SHOWN_CHARACTERS = 40


def shown(text: str) -> str:
    """Return `text` fit for one line of an error: printable ASCII, quoted, shortened to 40 characters."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    quoted = ascii(cut) if not cut.isprintable() else repr(cut)
    if len(text) > _SHOWN_CHARACTERS:
        return f"{quoted} ({len(text)} characters)"
    return quoted


def literal(value: object) -> str:
    """Return a value that a program gave, as it would write it, fit for one line of an error."""
    return shown(value) if isinstance(value, str) else shown(repr(value))[1:-1]


def check_text(name: str, value: object) -> str:
    """Return `value` when it is text.

    Raises:
        InvalidInputError: When it is not.
    """
    if isinstance(value, str):
        return value
    raise InvalidInputError(f"{name}={literal(value)} is not text; give it in quotes")


def check_flag(name: str, value: object) -> bool:
    """Return `value` when it is True or False.

    Raises:
        InvalidInputError: When it is neither.
    """
    if isinstance(value, bool):
        return value
    raise InvalidInputError(f"{name}={literal(value)} is neither True nor False; give one of them")


def check_number(name: str, value: object) -> int:
    """Return `value` when it is a whole number from 0 on.

    Raises:
        InvalidInputError: When it is not.
    """
    if type(value) is int and value >= 0:
        return value
    raise InvalidInputError(f"{name}={literal(value)} is not a number of this kind; give a whole one from 0 on")


def check_priority(priority: object) -> int:
    """Return `priority` when it is one.

    Raises:
        InvalidInputError: When it is not a whole number from 0 to 9.
    """
    if type(priority) is int and 0 <= priority <= 9:
        return priority
    raise InvalidInputError(f"{literal(priority)} is not a priority; give a whole number from 0 to 9")


def check_token(token: object) -> str:
    """Return `token` when it has the form of one; the error does not repeat it.

    Raises:
        InvalidInputError: When it is anything but 32 hexadecimal digits.
    """
    if isinstance(token, str) and len(token) == TOKEN_LENGTH and all(digit in "0123456789abcdef" for digit in token):
        return token
    raise InvalidInputError("that token is not 32 hexadecimal digits; give the one that 'claim --format json' printed")


def check_name(kind: str, text: str) -> str:
    """Return `text` when it is a valid name.

    Args:
        kind: What the name is for, as it appears in the error ("organisation", "plugin", "host", "pool").
        text: 1-128 letters, digits, dots, underscores and hyphens, a letter or digit first and last.

    Raises:
        InvalidInputError: When it is anything else.
    """
    if is_name(text):
        return text
    if not text:
        raise InvalidInputError(f"the {kind} name is empty; give one of letters, digits, '.', '_' and '-'")
    raise InvalidInputError(
        f"{shown(text)} is not a valid {kind} name; use 1-{MAX_NAME_LENGTH} letters, digits, '.', '_' and '-', "
        "with a letter or digit first and last"
    )


def is_name(text: str) -> bool:
    """Return whether a text is a valid name; for those that other programs may have written."""
    return len(text) <= MAX_NAME_LENGTH and _match_name(text) is not None


def check_address(text: str) -> str:
    """Return `text` when it is an IP address or a host name that others can reach a worker by.

    Raises:
        InvalidInputError: When it is neither; a port does not belong to it.
    """
    if is_name(text):
        return text
    if ":" in text and "%" not in text:
        import ipaddress

        try:
            return str(ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]")))
        except ValueError:
            pass
    raise InvalidInputError(f"{shown(text)} is not an address; give an IP address or a host name, without a port")


def check_plugin_name(text: str) -> str:
    """Return `text` when it is the name of a plugin: `email`, or that of an npm package, `@hay/plugin-email`.

    Raises:
        InvalidInputError: When it is neither.
    """
    if "@" not in text and "/" not in text:
        return check_name("plugin", text)
    if len(text) <= MAX_PACKAGE_LENGTH and _PACKAGE.fullmatch(text):
        return text
    raise InvalidInputError(
        f"{shown(text)} is not a valid plugin name; an npm name is @scope/name, both of lower-case letters, digits, "
        f"'.', '_' and '-' with a letter or digit first, {MAX_PACKAGE_LENGTH} characters at most"
    )


@lru_cache(_REMEMBERED)
def check_plugin(text: str) -> str:
    """Return `text` when it is the name of a plugin, or of one of its further ports: `email`, `email+debug`.

    Raises:
        InvalidInputError: When it is neither.
    """
    plugin, plus, port = text.partition("+")
    check_plugin_name(plugin)
    if plus:
        check_name("port", port)
    return text


def check_port(value: int | str) -> int:
    """Return `value` as a port number.

    Raises:
        InvalidInputError: When it is not a whole number from 1 to 65535.
    """
    if type(value) is int and PORT_MIN <= value <= PORT_MAX:
        return value
    text = str(value)
    if not isinstance(value, bool) and _PORT_DIGITS.fullmatch(text) and PORT_MIN <= int(text) <= PORT_MAX:
        return int(text)
    raise InvalidInputError(f"{shown(text)} is not a port; give a whole number from {PORT_MIN} to {PORT_MAX}")


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Return `labels` when there are at most 16, with valid names and printable values of at most 256 characters.

    Raises:
        InvalidInputError: When they are not.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidInputError(f"{len(labels)} labels are too many; give at most {MAX_LABELS}")
    for name, value in labels.items():
        check_name("label", name)
        if len(value) > MAX_LABEL_VALUE_LENGTH or not value.isprintable():
            raise InvalidInputError(
                f"the value {shown(value)} of label {name} is not valid; "
                f"use at most {MAX_LABEL_VALUE_LENGTH} printable characters"
            )
    return labels


class WorkerId(Value, order=True):
    """Who a lease is for: one instance of a plugin for an organisation, unique over the whole pool.

    Attributes:
        org: The organisation's id.
        plugin: The plugin's name; `plugin+name` for a further port of a worker that has several.
        instance: 0 for the first worker of this plugin and organisation, then 1, 2, …
    """

    org: str
    plugin: str
    instance: int = 0

    def __post_init__(self) -> None:
        check_name("organisation", self.org)
        check_plugin(self.plugin)
        if type(self.instance) is not int or not 0 <= self.instance <= MAX_INSTANCE:
            raise InvalidInputError(
                f"{shown(str(self.instance))} is not an instance; give a whole number from 0 to {MAX_INSTANCE}"
            )

    def __str__(self) -> str:
        return f"{self.org}/{self.plugin}#{self.instance}"

    @classmethod
    @lru_cache(_REMEMBERED)
    def parse(cls, text: str) -> WorkerId:
        """Read `org/plugin` or `org/plugin#instance`.

        Raises:
            InvalidInputError: When the text has another form or a name in it is not valid.
        """
        org, slash, rest = text.partition("/")
        plugin, mark, number = rest.partition("#")
        if not slash or (mark and not re.fullmatch(r"[0-9]{1,5}", number, re.ASCII)):
            raise InvalidInputError(f"{shown(text)} is not a worker; write org/plugin or org/plugin#instance")
        return cls(org, plugin, int(number) if mark else 0)


def port_variable(name: str) -> str:
    """Return the name of the variable of one of a worker's several ports: `debug` gives `PORT_DEBUG`."""
    return "PORT_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


def short_name(plugin: str) -> str:
    """Return a plugin's name without its scope, and without a leading `plugin-` or otherwise a trailing `-plugin`.

    `@hay/plugin-email` gives `email`. Conventional ports and bands go by it where the pool does not name the plugin in
    full; `lua/lib/short_name.lua` does the same.
    """
    name = plugin.rpartition("/")[2]
    shorter = name.removeprefix("plugin-")
    shorter = shorter if shorter != name else name.removesuffix("-plugin")
    return shorter or name


def environment_names(plugin: str) -> tuple[str, ...]:
    """Return the names of a plugin's port variable: by its full name, and by its short name where that is another.

    `email` gives `EMAIL_PLUGIN_PORT`; `@hay/plugin-email` gives `HAY_PLUGIN_EMAIL_PLUGIN_PORT` and `EMAIL_PLUGIN_PORT`.
    """
    prefixes = (re.sub(r"[^A-Z0-9]", "_", name.upper()) for name in (plugin.removeprefix("@"), short_name(plugin)))
    return tuple(dict.fromkeys(f"{prefix}_PLUGIN_PORT" for prefix in prefixes))


def environment_hint(plugin: str, environment: Mapping[str, str]) -> int | None:
    """Return the port that the environment names for a plugin, by its full name before its short one; None without.

    Raises:
        InvalidInputError: When the variable holds something else than a port; the error names it.
    """
    for name in environment_names(plugin):
        if text := environment.get(name):
            try:
                return check_port(text)
            except InvalidInputError as error:
                raise InvalidInputError(f"the variable {name}: {error}") from None
    return None
