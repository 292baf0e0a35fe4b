"""Redis URLs as values: which servers, which way, with which secrets. Nothing here connects or imports a driver.

The rule of this file: a secret goes in and never comes out again by accident. `StoreAddress` keeps passwords out of
its `repr`, `redacted` shows only where a URL points to, and no error below quotes more of a URL than that.

Forms: `redis://[user:password@]host[:port][/db]` · `rediss://…` · `unix:///path[?db=n]` (also `redis+unix://`) ·
`redis+sentinel://[user:password@]host1[:port],host2[:port]/service[/db][?sentinel_password=…]` (also
`rediss+sentinel://`) · `redis+cluster://[user:password@]host1[:port],host2[:port]` (also `rediss+cluster://`).
Passwords are percent-encoded. Options after `?`: `db`, `client_name`, and for TLS the `ssl_…` ones of redis-py.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from allocator.model.errors import ConfigurationError
from allocator.model.values import Value, field

if TYPE_CHECKING:
    from collections.abc import Mapping

PASSWORD_VARIABLE = "ALLOCATOR_REDIS_PASSWORD"  # noqa: S105  # the name of a variable, not a password
"""The environment variable that holds the password when the URL, which stands in process lists, does not."""

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
MAX_DATABASE = 9_999

_FORMS = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
_USERINFO = r"(?s)^([A-Za-z][A-Za-z0-9+.-]*://)?.*@"
_NO_PORT = r":(?!//)(?=[^/,:\]]*[^/,:\]0-9])[^/,:\]]*"
_HOST = r"(?a)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?"
_IPV6 = r"(?a)\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]"
_DIGITS = r"(?a)[0-9]{1,5}"
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SSL_TEXTS = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"})
_SSL_CERT_REQS = frozenset({"none", "optional", "required"})


class Topology(StrEnum):
    """How the servers behind a URL hang together."""

    STANDALONE = "standalone"
    UNIX = "unix"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_SCHEMES = {
    "redis": (Topology.STANDALONE, False),
    "rediss": (Topology.STANDALONE, True),
    "unix": (Topology.UNIX, False),
    "redis+unix": (Topology.UNIX, False),
    "redis+sentinel": (Topology.SENTINEL, False),
    "rediss+sentinel": (Topology.SENTINEL, True),
    "redis+cluster": (Topology.CLUSTER, False),
    "rediss+cluster": (Topology.CLUSTER, True),
}


class StoreAddress(Value, kw_only=True):
    """Where a store is and how to get in.

    Attributes:
        topology: What kind of servers they are.
        tls: Whether to speak TLS.
        nodes: Host and port of the server, of the Sentinels, or of some Cluster nodes; empty for a Unix socket.
        path: The Unix socket, or None.
        service: What the Sentinels call the primary, or None.
        database: The number of the database.
        username: The ACL user, or None for `default`.
        password: Its password, or None.
        sentinel_username: The ACL user at the Sentinels, or None.
        sentinel_password: Its password, or None.
        client_name: What `CLIENT LIST` shows, or None.
        ssl_options: Keyword arguments of redis-py that begin with `ssl_`.
    """

    topology: Topology
    tls: bool = False
    nodes: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    service: str | None = None
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    client_name: str | None = None
    ssl_options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """The URL without secrets and options, for people."""
        database = f"/{self.database}" if self.database else ""
        if self.topology is Topology.UNIX:
            return f"unix://{self.path}" + (f"?db={self.database}" if self.database else "")
        scheme = "rediss" if self.tls else "redis"
        servers = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        if self.topology is Topology.STANDALONE:
            return f"{scheme}://{servers}{database}"
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}+{self.topology}://{servers}{service}{database}"


def parse_store_url(url: str, *, password: str | None = None, environ: Mapping[str, str] | None = None) -> StoreAddress:
    """Return where `url` points to.

    Args:
        url: A URL in one of the forms at the top of this module.
        password: The password, when it is not in the URL; "" states that there is none, whatever the environment has.
        environ: Where `ALLOCATOR_REDIS_PASSWORD` is looked for when neither has one; default: this process's.

    Raises:
        ConfigurationError: When it is no such URL. The error never quotes a secret.
    """
    scheme, separator, rest = url.partition("://")
    known = _SCHEMES.get(scheme.lower())
    if not separator or known is None:
        raise ConfigurationError(f"{_quoted(url)} is not a Redis URL; write {_FORMS}")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ConfigurationError(f"the Redis URL {_quoted(url)} has a blank or control character; percent-encode it")
    topology, tls = known
    location, _, query = rest.partition("?")
    location = location.partition("#")[0]
    userinfo, _, where_it_is = location.rpartition("@")
    if "/" in userinfo or ("@" in query and not _looks_like_options(query)):
        raise ConfigurationError(
            f"the Redis URL {_quoted(url)} cannot be read: percent-encode '/', '?', '#', '@' and ':' in its password"
        )
    fields = _location(topology, where_it_is, url)
    fields.update(_options(query, tls=tls, url=url, taken=fields))
    username, _, written = userinfo.partition(":")
    found = unquote(written) or password
    if found is None:
        found = (os.environ if environ is None else environ).get(PASSWORD_VARIABLE)
    return StoreAddress(
        topology=topology,
        tls=tls,
        username=unquote(username) or None,
        password=found or None,
        **fields,  # type: ignore[arg-type]  # built field by field below, each with its own type
    )


def redacted(url: str) -> str:
    """Return `url` for people: where it points to, without user, password and options, whatever its form."""
    try:
        return parse_store_url(url, environ={}).shown
    except ConfigurationError:
        return _cut(url)


def _cut(url: str) -> str:
    """Return what can be shown of a URL that cannot be read.

    All before the last '@' and after '?' may be a secret, and so may what stands in the place of a port.
    """
    hidden = re.sub(_USERINFO, lambda match: (match[1] or "") + "…@", url)
    visible = re.sub(_NO_PORT, ":…", re.split(r"[?#]", hidden, maxsplit=1)[0])
    text = "".join(character if character.isprintable() else "?" for character in visible)
    return text if len(text) <= 80 else text[:80] + "…"


def _quoted(url: str) -> str:
    return f"'{_cut(url)}'"


def _looks_like_options(query: str) -> bool:
    return all("=" in part.partition("@")[0] for part in query.split("&"))


def _location(topology: Topology, where_it_is: str, url: str) -> dict[str, object]:
    """Read what stands behind the '@' and before the '?'."""
    if topology is Topology.UNIX:
        if not where_it_is.startswith("/") or where_it_is.endswith("/"):
            raise ConfigurationError(
                f"{_quoted(url)} names no Unix socket; write unix:///path/to/socket with three slashes"
            )
        return {"path": _plain(unquote(where_it_is), url)}
    authority, _, path = where_it_is.partition("/")
    parts = [unquote(part) for part in path.split("/")] if path else []
    default_port = DEFAULT_SENTINEL_PORT if topology is Topology.SENTINEL else DEFAULT_PORT
    nodes = tuple(_node(text, default_port, url) for text in authority.split(","))
    fields: dict[str, object] = {"nodes": nodes}
    if topology is Topology.SENTINEL:
        if not parts or not parts[0]:
            raise ConfigurationError(
                f"{_quoted(url)} does not name the Sentinels' service; write redis+sentinel://host:26379/service"
            )
        fields["service"] = _plain(parts.pop(0), url)
    elif topology is Topology.STANDALONE and len(nodes) > 1:
        raise ConfigurationError(
            f"{_quoted(url)} names several servers; write redis+sentinel:// or redis+cluster:// for them"
        )
    parts = [part for part in parts if part]
    if len(parts) > 1:
        raise ConfigurationError(f"{_quoted(url)} has a path that is not a database number; end it with /0 or so")
    if parts:
        fields["database"] = _database(parts[0], topology, url)
    return fields


def _plain(text: str, url: str) -> str:
    if text.isprintable():
        return text
    raise ConfigurationError(f"{_quoted(url)} has a control character in a name, as %00 is; correct it")


def _node(text: str, default_port: int, url: str) -> tuple[str, int]:
    address, colon, number = text, "", ""
    if "]" in text:
        address, _, after = text.partition("]")
        address, colon, number = address + "]", after[:1], after[1:]
    elif ":" in text:
        address, colon, number = text.partition(":")
    host = re.fullmatch(_IPV6, address)
    name = host[1] if host else unquote(address)
    if not host and not re.fullmatch(_HOST, name):
        if name:
            raise ConfigurationError(f"{_quoted(url)} has a host that is not a name or address; write host:port")
        name = "localhost"
    if not colon and not number:
        return name, default_port
    if colon != ":" or not re.fullmatch(_DIGITS, number) or not 1 <= int(number) <= 65_535:
        raise ConfigurationError(f"{_quoted(url)} has a port that is not a number from 1 to 65535; write host:port")
    return name, int(number)


def _database(text: str, topology: Topology, url: str) -> int:
    if not re.fullmatch(_DIGITS, text) or int(text) > MAX_DATABASE:
        raise ConfigurationError(f"{_quoted(url)} has a database that is not a number; end it with /0 or so")
    if topology is Topology.CLUSTER and int(text):
        raise ConfigurationError(f"{_quoted(url)}: a Cluster has database 0 only; leave the number out")
    return int(text)


def _options(query: str, *, tls: bool, url: str, taken: Mapping[str, object]) -> dict[str, object]:
    """Read what stands behind the '?'."""
    fields: dict[str, object] = {}
    ssl_options: dict[str, str | bool] = {}
    topology = Topology.UNIX if "path" in taken else Topology.STANDALONE
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name.startswith("ssl_"):
            if not tls:
                raise ConfigurationError(f"{_quoted(url)} has the option {_option(name)} without TLS; write rediss")
            ssl_options[name] = _ssl_option(name, value, url)
        elif name == "db":
            fields["database"] = _database(value, topology, url)
        elif name == "client_name" or (name in ("sentinel_username", "sentinel_password") and "service" in taken):
            fields[name] = value
        else:
            raise ConfigurationError(
                f"{_quoted(url)} has an unknown option {_option(name)}; known are db, client_name, "
                "ssl_…, and sentinel_username and sentinel_password with Sentinels"
            )
    if ssl_options:
        fields["ssl_options"] = ssl_options
    return fields


def _option(name: str) -> str:
    return name if re.fullmatch(r"[a-z_]{1,40}", name) else "(not shown)"


def _ssl_option(name: str, value: str, url: str) -> str | bool:
    if name in _SSL_TEXTS and value:
        return value
    if name == "ssl_check_hostname" and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if name == "ssl_cert_reqs" and value in _SSL_CERT_REQS:
        return value
    raise ConfigurationError(
        f"{_quoted(url)}: {_option(name)} is not a TLS option or has no such value; known are ssl_ca_certs=FILE, "
        "ssl_ca_path=DIR, ssl_certfile=FILE, ssl_keyfile=FILE, ssl_password=WORD, ssl_check_hostname=yes|no and "
        "ssl_cert_reqs=none|optional|required"
    )
