"""Redis URLs: standalone, TLS, Unix socket, Sentinel and Cluster; taken apart here, and shown without secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from allocator.model.errors import ConfigurationError

Kind = Literal["single", "sentinel", "cluster"]

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_DEFAULT_PORT = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"})
_HIDDEN = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """A Redis URL, taken apart.

    Attributes:
        kind: How the servers are found.
        shown: The URL without its secrets.
        nodes: Hosts and ports; empty for a Unix socket.
        path: The Unix socket, or None.
        service: The name of the Sentinel service, or None.
        db: The database number.
        options: Arguments for every connection (user, password, TLS).
        sentinel_options: The same for connections to the Sentinels.
    """

    kind: Kind
    shown: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    service: str | None = None
    db: int = 0
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def redacted(url: str) -> str:
    """Return `url` with its passwords replaced by `***`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    _, at, address = parts.netloc.rpartition("@")
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    hidden = [(name, _HIDDEN if "password" in name else value) for name, value in parse_qsl(parts.query)]
    netloc = f"{user}:{_HIDDEN}@{address}" if at else address
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(hidden, safe="*/"), ""))


def parse_url(url: str, *, password: str | None = None) -> StoreUrl:
    """Take a Redis URL apart.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, `rediss://…?ssl_ca_certs=FILE`, `unix:///path[?db=N]`,
            `redis+sentinel://[user:password@]host:port,host:port/service[/db][?sentinel_password=…]`,
            `redis+cluster://[user:password@]host:port,host:port`. User and password are percent-encoded.
        password: The password when the URL has none.

    Raises:
        ConfigurationError: When the URL has another form.
    """
    shown = redacted(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{shown!r} is not a Redis URL; begin it with redis://, rediss://, unix://, redis+sentinel:// or "
            "redis+cluster://"
        )
    kind, tls = _SCHEMES[parts.scheme]
    credentials, _, address = parts.netloc.rpartition("@")
    user, _, secret = credentials.partition(":")
    query = dict(parse_qsl(parts.query))
    options: dict[str, Any] = {"username": unquote(user) or None, "password": unquote(secret) or password}
    sentinel_options: dict[str, Any] = {}
    for name in ("username", "password"):
        if f"sentinel_{name}" in query:
            sentinel_options[name] = query.pop(f"sentinel_{name}")
    if tls:
        options["ssl"] = True
        options |= {name: _tls_value(name, query.pop(name)) for name in _TLS_OPTIONS & query.keys()}
        sentinel_options |= {name: value for name, value in options.items() if name.startswith("ssl")}
    path: str | None = None
    service: str | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    words = [word for word in parts.path.split("/") if word]
    if parts.scheme.endswith("unix"):
        db, path = query.pop("db", "0"), unquote(parts.path)
        well_formed = bool(path) and not parts.netloc
    else:
        nodes = _nodes(shown, address, _DEFAULT_PORT[kind])
        service = words.pop(0) if kind == "sentinel" and words else None
        db = words.pop(0) if words and kind != "cluster" else query.pop("db", "0")
        well_formed = not words and (kind != "sentinel" or service is not None)
    if not well_formed or not db.isdecimal() or query:
        raise ConfigurationError(
            f"the Redis URL {shown} cannot be read"
            + (f" (unknown option {min(query)})" if query else "")
            + "; see the forms in docs/reference/settings.md"
        )
    return StoreUrl(
        kind=kind, shown=shown, nodes=nodes, path=path, service=service, db=int(db),
        options=options, sentinel_options=sentinel_options,
    )  # fmt: skip


def _tls_value(name: str, text: str) -> str | bool:
    return text.lower() not in {"0", "false", "no"} if name == "ssl_check_hostname" else text


def _nodes(shown: str, address: str, default_port: int) -> tuple[tuple[str, int], ...]:
    nodes = []
    for node in address.split(",") if address else ["localhost"]:
        host, colon, port = node.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = node, str(default_port)
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConfigurationError(f"the Redis URL {shown} has a host without a valid port; write host:port")
        nodes.append((host.strip("[]"), int(port)))
    return tuple(nodes)
