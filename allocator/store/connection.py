"""The description of a connection to one server, which the blocking and the asyncio connections both go by.

It has the way to the server, the TLS context, the commands that begin a connection, the parser, the time that the
server has for each of connecting, taking a command and answering it, and whether the server will do: its kind and
version, its role, whether it evicts keys or forgets everything. The rule of this file: nothing here sends or
waits, so that both faces mean the same by it. An error reply is a `ReplyError`, a server that speaks something other
than RESP a `ForeignReplyError`, and everything else that goes wrong an `OSError`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from hiredis import Reader, pack_command

from allocator.model.errors import ConfigurationError
from allocator.model.values import Value

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping

    from allocator.store.urls import StoreAddress

Word = str | int | float | bytes
Words = tuple[Word, ...]

OLDEST_REDIS = (6, 2)
"""The first with `ZADD … LT` for all, `ZMSCORE` and `XADD … MAXLEN ~` trimmed as the scripts expect."""

CLIENT_NAME = "portlease"
"""What `CLIENT LIST` shows when the URL names nothing else."""

READ_SIZE = 65_536
"""As much is read at once, in bytes: the answer to any script but the longest listings."""

KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""When the kernel asks whether the other end of an idle connection is still there, in seconds, and how often."""

INCOMPLETE: Final = object()
"""What the parser returns while an answer is not there as a whole."""

CLOSED = "the server closed the connection"
SILENT = "it took the connection and then sent no answer"
UNFINISHED = "its answer did not end in time"


class ReplyError(Exception):
    """An error that the server answered.

    Attributes:
        code: Its code, `NOSCRIPT` or `ERR`; empty where it is not a code.
    """

    def __init__(self, text: str) -> None:
        code = text.partition(" ")[0]
        self.code = code if code.isupper() else ""
        super().__init__(text.removeprefix("ERR "))

    def __reduce__(self) -> tuple[type[ReplyError], tuple[str]]:
        return type(self), (f"ERR {self}" if self.code == "ERR" else str(self),)


class ForeignReplyError(Exception):
    """An answer that is not RESP, as a web server gives."""


class ConnectionOptions(Value):
    """A way to one server.

    Attributes:
        address: Where it is and how to get in.
        timeout_s: For how many seconds it may keep a call waiting: to connect, to take a command, to answer it.
    """

    address: StoreAddress
    timeout_s: float

    @property
    def greeting(self) -> list[Words]:
        """The commands that begin a connection; they are sent together."""
        address = self.address
        commands: list[Words] = []
        if address.username:
            commands.append(("AUTH", address.username, address.password or ""))
        elif address.password:
            commands.append(("AUTH", address.password))
        commands.append(("CLIENT", "SETNAME", address.client_name or CLIENT_NAME))
        if address.database:
            commands.append(("SELECT", address.database))
        return commands

    @property
    def server_name(self) -> str | None:
        """The name that the server's certificate has to have, or None without TLS."""
        return self.address.nodes[0][0] if self.address.tls else None

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what TLS goes by, or None without it; files are read each time, for certificates are renewed.

        Raises:
            ConfigurationError: When a file cannot be used.
        """
        if not self.address.tls:
            return None
        import ssl

        options: Mapping[str, Any] = self.address.ssl_options
        needs = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
        required = needs[options.get("ssl_cert_reqs", "required")]
        context = ssl.create_default_context()
        context.check_hostname = required is not ssl.CERT_NONE and options.get("ssl_check_hostname", True)
        context.verify_mode = required
        certificate: Any = options.get("ssl_certfile")
        key: Any = options.get("ssl_keyfile")
        trusted: dict[str, Any] = {"cafile": options.get("ssl_ca_certs"), "capath": options.get("ssl_ca_path")}
        try:
            if certificate or key:  # "" for no password: OpenSSL would ask the terminal for one
                context.load_cert_chain(certificate or key, key, options.get("ssl_password", ""))
            if any(trusted.values()):
                context.load_verify_locations(**trusted)
        except OSError as error:
            raise ConfigurationError(
                f"Redis at {self.address.shown}: TLS failed, for a certificate or key cannot be used "
                f"({error.strerror or error}); check the ssl_… options"
            ) from error
        return context


def new_reader() -> Reader:
    """Return a parser of answers; an error reply comes as a value, for it spoils nothing."""
    return Reader(protocolError=ForeignReplyError, replyError=ReplyError, notEnoughData=INCOMPLETE)


def packed(commands: Iterable[Words]) -> bytes:
    """Return commands as they are sent.

    Raises:
        UnicodeEncodeError: When an argument is not text that UTF-8 can have.
    """
    return b"".join([pack_command(words) for words in commands])  # type: ignore[arg-type]  # its stub means tuples of one


def set_tcp_options(opened: socket.socket) -> None:
    """Send commands at once, and let the kernel find an idle connection whose other end is gone."""
    if opened.family == socket.AF_UNIX:
        return
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if number := getattr(socket, name, None):
            opened.setsockopt(socket.IPPROTO_TCP, number, value)


def first_error(replies: Iterable[Any]) -> ReplyError | None:
    """Return the first error among some replies, or None."""
    return next((reply for reply in replies if type(reply) is ReplyError), None)


class ServerInfo(Value, kw_only=True):
    """What a server reports of itself; empty where it does not report it.

    Attributes:
        kind: `redis` or `valkey`.
        version: Its version.
        role: `master` or `slave`, as the server reports it.
        eviction: Its `maxmemory-policy`.
        append_only: Whether it keeps an append-only file.
    """

    kind: str
    version: str
    role: str
    eviction: str
    append_only: bool | None

    @classmethod
    def read(cls, reply: bytes | Mapping[str, Any]) -> ServerInfo:
        """Return what the reply to `INFO` states: of one server, or of the first of a Cluster's."""
        info: Mapping[str, Any] = fields_of(reply) if isinstance(reply, bytes) else reply
        first = next(iter(info.values()), None)
        if isinstance(first, dict) and "redis_version" in first:
            info = first
        valkey = info.get("valkey_version")
        append_only = info.get("aof_enabled")
        return cls(
            kind="valkey" if valkey else "redis",
            version=str(valkey or info.get("redis_version", "")),
            role=str(info.get("role", "")),
            eviction=str(info.get("maxmemory_policy", "")),
            append_only=None if append_only is None else bool(int(append_only)),
        )

    def check(self, shown_url: str) -> None:
        """Refuse a server that would break what portlease promises.

        Raises:
            ConfigurationError: When it evicts keys, is a replica, or is too old.
        """
        if self.eviction and self.eviction != "noeviction":
            raise ConfigurationError(
                f"Redis at {shown_url} evicts keys (maxmemory-policy {self.eviction}), and with them live leases; "
                "set it right: redis-cli config set maxmemory-policy noeviction"
            )
        if self.role in {"slave", "replica"}:
            raise ConfigurationError(
                f"Redis at {shown_url} is a replica; give the URL of its primary, or a redis+sentinel:// URL"
            )
        if self.kind == "redis" and self.version and _numbers(self.version) < OLDEST_REDIS:
            raise ConfigurationError(f"Redis at {shown_url} is version {self.version}; use 6.2 or newer, or Valkey")

    def warnings(self) -> list[str]:
        """Return what works but should be known."""
        if self.append_only is False:
            return [
                (
                    "the server keeps no append-only file: after a restart leases come back only as their holders "
                    "re-assert them; switch it on: redis-cli config set appendonly yes"
                )
            ]
        return []


def fields_of(reply: bytes) -> dict[str, str]:
    """Return the fields of a reply to `INFO`."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
