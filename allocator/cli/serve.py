"""`serve`: the HTTP API and the status page; `token`: credentials for it."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.context import blocking_allocator, read_settings, report, report_embedded
from allocator.cli.options import OPTIONS, ConfigOption, DatabaseOption, HostOption, PoolOption, RedisOption
from allocator.model.errors import ConfigurationError, HeldError, InvalidInputError
from allocator.model.log import WARNING
from allocator.model.names import shown
from allocator.model.owned import appendable

if TYPE_CHECKING:
    from allocator.api.access import Access
    from allocator.api.drift import DriftView
    from allocator.client.aio import AsyncPortAllocator
    from allocator.model.settings import Settings

LOOPBACK_NAMES = ("127.0.0.1", "::1", "[::1]", "localhost")
BACKLOG = 2_048
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)

ListenOption = Annotated[str | None, OPTIONS["listen"]]
TokensOption = Annotated[str | None, OPTIONS["tokens_file"]]


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command()(serve)
    application.command()(token)


def serve(
    listen: ListenOption = None,
    tokens_file: TokensOption = None,
    tls_cert: Annotated[str | None, OPTIONS["tls_cert"]] = None,
    tls_key: Annotated[str | None, OPTIONS["tls_key"]] = None,
    database_url: DatabaseOption = None,
    rate: Annotated[
        str, typer.Option("--rate", metavar="NUMBER", help="Requests a second of one caller; 0: no limit.")
    ] = "500",
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve the HTTP API, the status page and the metrics, until it is stopped.

    With a database, the page shows where the table of workers and the leases differ.

    Example: allocator serve --listen 127.0.0.1:8577
    """
    if not rate.isascii() or not rate.isdecimal() or len(rate) > 6:
        raise InvalidInputError(
            f"--rate takes a whole number of requests a second, not {shown(rate)}; give 0 to 999999"
        )
    flags = {"listen": listen, "tokens_file": tokens_file, "tls_cert": tls_cert, "tls_key": tls_key}
    flags["database_url"] = database_url
    settings = read_settings(pool, host, redis_url, config, **flags)
    address, port = listen_address(settings.listen)
    try:
        from allocator.api.application import create_app
        from allocator.api.limits import Limits
        from allocator.api.server import run_server
    except ImportError as error:
        raise ConfigurationError(
            f"serve needs the package {error.name}; install it with: pip install 'portlease[server]'"
        ) from None
    from allocator.cli.checks.rights import report_missing_rights
    from allocator.cli.logs import start_logging

    access = _access(settings, address)
    files = _tls_files(settings)
    listener = tcp_listener(address, port)
    start_logging()
    _warn(settings, access, address)
    requests_per_s = int(rate)
    limits = Limits(requests_per_s=requests_per_s, burst=2 * requests_per_s)
    view = drift_view(settings)
    application = create_app(async_allocator(settings), access=access, limits=limits, drift_view=view)
    where = f"http{'s' if files else ''}://{_shown_address(address)}:{listener.getsockname()[1]}"
    report(f"serving pool {settings.pool} on {where}; the page is at {where}/")
    report_missing_rights(settings)
    run_server(application, listener, tls=files)


def listen_address(text: str) -> tuple[str, int]:
    """Return the address and port of `address:port`, `[::1]:port` or `:port` (all addresses).

    Raises:
        ConfigurationError: When it is neither.
    """
    address, colon, number = text.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]") or "0.0.0.0"  # noqa: S104  # what ':port' asks for
    if not colon or not _PORT.fullmatch(number) or int(number) > 65_535 or "/" in address:
        raise ConfigurationError(f"{shown(text)} is not an address to listen on; write it like 127.0.0.1:8577")
    return bare, int(number)


def _shown_address(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def is_loopback(address: str) -> bool:
    """Return whether an address is reached from this machine only."""
    import ipaddress

    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _access(settings: Settings, address: str) -> Access:
    from allocator.api.access import Access
    from allocator.api.credentials import TokensFile

    if settings.tokens_file is None:
        if not is_loopback(address):
            raise ConfigurationError(
                f"without credentials this listens on loopback only, not on {shown(address)}; "
                "give --tokens-file FILE, made by 'allocator token NAME --scope lease --file FILE'"
            )
        return Access(hosts=[*LOOPBACK_NAMES, _shown_address(address)])
    tokens = TokensFile(Path(settings.tokens_file))
    tokens.load()
    return Access(tokens)


def _warn(settings: Settings, access: Access, address: str) -> None:
    if access.tokens is None:
        return
    if access.tokens.load() == 0:
        report(
            f"the tokens file {access.tokens.path} names no credential yet: every request is refused until it does",
            level=WARNING,
        )
    if not is_loopback(address) and settings.tls_cert is None:
        report(
            "bearer tokens travel in clear text here; give --tls-cert and --tls-key unless a proxy does TLS",
            level=WARNING,
        )


def _tls_files(settings: Settings) -> tuple[Path, Path] | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("TLS needs both a certificate and its key; give --tls-cert and --tls-key")
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    import ssl

    files = Path(settings.tls_cert), Path(settings.tls_key)
    for path in files:
        if not path.is_file():
            raise ConfigurationError(f"the TLS file {path} does not exist; correct --tls-cert or --tls-key")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*files)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error.strerror or "it cannot be read"
        raise ConfigurationError(
            f"{files[0]} and {files[1]} are not a certificate and its key ({why}); correct them"
        ) from None
    return files


def tcp_listener(address: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        HeldError: When another process has the port.
        ConfigurationError: When the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except UnicodeError:
        raise ConfigurationError(f"{shown(address)} is neither an address nor a host name; correct --listen") from None
    except OSError as error:
        from allocator.kernel.answers import describe_listener

        where = f"{_shown_address(address)}:{port}"
        who = describe_listener(port) if port else None
        if who:
            raise HeldError(f"{who} listens on {where} already; end it or give another --listen", port=port) from None
        raise ConfigurationError(f"{where} cannot be listened on ({error.strerror}); correct --listen") from None


def drift_view(settings: Settings) -> DriftView | None:
    """Return what compares the leases with the database that is in use, not connected yet, or None."""
    from allocator.cli.db import database_in_use

    database = database_in_use(settings)
    if database is None:
        return None
    from allocator.api.drift import DriftView

    return DriftView(blocking_allocator(settings), database, settings.table, refreshes=settings.refresh_expiry)


def async_allocator(settings: Settings) -> AsyncPortAllocator:
    """Return the async allocator that the settings make, not connected yet."""
    from allocator.client.aio import AsyncPortAllocator
    from allocator.client.session import session_of
    from allocator.store.aio import AsyncStore
    from allocator.store.base import open_store

    return AsyncPortAllocator(open_store(AsyncStore, settings, on_start=report_embedded), session_of(settings))


def token(
    name: Annotated[str, typer.Argument(help="Whose it is; it stands in the log.")],
    scope: Annotated[
        str,
        typer.Option(
            "--scope",
            metavar="read|lease|admin|force",
            help="read, lease, admin or force; each covers those before it.",
        ),
    ] = "read",
    pools: Annotated[
        list[str] | None,
        typer.Option("--pool", metavar="NAME", help="A pool that it is for; may be given again. [default: all pools]"),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="Add its line to this tokens file.")
    ] = None,
) -> None:
    """Make a bearer token for 'serve' and print it once; the file gets its hash only.

    Example: allocator token deploy --scope lease --file tokens
    """
    from allocator.api.credentials import Scope, new_api_token, tokens_line

    if scope not in set(Scope):
        raise InvalidInputError(f"{shown(scope)} is not a scope; choose read, lease, admin or force")
    made = new_api_token()
    line = tokens_line(name, Scope(scope), made, pools or ())
    if file is None:
        report(f"add this line to the tokens file: {line}")
    else:
        _append(Path(file), line)
    print(made)


def _append(path: Path, line: str) -> None:
    import os

    try:
        with os.fdopen(appendable(path), "r+", encoding="utf-8") as file:
            before = file.read()
            if any(known.split()[:1] == line.split()[:1] for known in before.splitlines()):
                raise InvalidInputError(
                    f"{path} has a credential {line.partition(' ')[0]} already; choose another name or delete its line"
                )
            file.write(f"{'' if before.endswith(chr(10)) or not before else chr(10)}{line}\n")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}); name another --file") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a tokens file; name another --file") from None
