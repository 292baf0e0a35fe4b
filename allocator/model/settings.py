"""Settings: from flags, then `ALLOCATOR_*` of the environment, then `allocator.toml`, then defaults.

The file is `allocator.toml` in the working directory, else in `$XDG_CONFIG_HOME/allocator/`; `--config` names another.
State lives in `$ALLOCATOR_STATE_DIR`, else in `$XDG_STATE_HOME/allocator`. As the XDG specification asks, its variables
count only when they hold absolute paths.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.model.durations import parse_duration_ms
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_address, check_name
from allocator.model.pools import SDK_V2
from allocator.model.reading import read_text
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = "allocator.toml"
NAMES = (
    "pool",
    "host",
    "advertise",
    "redis_url",
    "connect_timeout",
    "database_url",
    "listen",
    "tokens_file",
    "tls_cert",
    "tls_key",
)
DEFAULT_TIMEOUT = "5s"
DEFAULT_LISTEN = "127.0.0.1:8577"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every command goes by.

    Attributes:
        pool: The pool.
        host: The name of this port namespace, or None for the host name.
        advertise: The address under which others reach this host, or None for that of the default route.
        redis_url: Where Redis is, or None for the embedded server.
        redis_password: The password when the URL has none.
        connect_timeout_ms: For how long Redis or the database may be silent, in milliseconds.
        database_url: Where the database is, or None for SQLite beside the embedded server.
        database_password: The password when that URL has none.
        table: What the table of workers and its columns are called there.
        refresh_expiry: Whether `lease_expires_at` follows the renewals of a lease whose row is else the same.
        listen: Where `serve` listens, as `address:port`.
        tokens_file: The credentials that `serve` knows, or None.
        tls_cert: The certificate chain that `serve` shows, or None.
        tls_key: Its key.
    """

    pool: str = SDK_V2.name
    host: str | None = None
    advertise: str | None = None
    redis_url: str | None = field(default=None, repr=False)
    redis_password: str | None = field(default=None, repr=False)
    connect_timeout_ms: int = 5_000
    database_url: str | None = field(default=None, repr=False)
    database_password: str | None = field(default=None, repr=False)
    table: TableNames = field(default_factory=TableNames)
    refresh_expiry: bool = True
    listen: str = DEFAULT_LISTEN
    tokens_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    environ: Mapping[str, str] = field(repr=False)

    @property
    def state_dir(self) -> Path:
        """Where lease files and the embedded server live.

        Raises:
            ConfigurationError: When nothing says where; only who keeps state needs to know.
        """
        return state_directory(self.environ)

    @property
    def agent_socket(self) -> Path:
        """Where the agent of this state directory serves the API, unless it is told otherwise."""
        return self.state_dir / "agent.sock"

    @property
    def agent_lock(self) -> Path:
        """The file that the agent of this state directory holds locked, with its pid in it."""
        return self.state_dir / "agent.lock"


def load_settings(
    flags: Mapping[str, str | None], environ: Mapping[str, str], *, config: str | None = None
) -> Settings:
    """Return the settings.

    Args:
        flags: What the command line gave, by setting; None where it gave nothing.
        environ: The environment.
        config: The settings file that was named, or None to look for one.

    Raises:
        ConfigurationError: When the file cannot be used.
        InvalidInputError: When a flag or variable cannot be right.
    """
    values: dict[str, str] = {"pool": SDK_V2.name, "connect_timeout": DEFAULT_TIMEOUT}
    file = _from_file(config or environ.get("ALLOCATOR_CONFIG"), environ)
    values |= file.values
    values |= {name: environ[key] for name in NAMES if environ.get(key := f"ALLOCATOR_{name.upper()}")}
    values |= {name: value for name, value in flags.items() if value is not None}
    timeout_ms = parse_duration_ms(values["connect_timeout"], what="connect timeout")
    if timeout_ms == 0:
        raise InvalidInputError("a connect timeout of 0 would never reach Redis; give for example 5s")
    return Settings(
        pool=check_name("pool", values["pool"]),
        host=check_name("host", values["host"]) if "host" in values else None,
        advertise=check_address(values["advertise"]) if "advertise" in values else None,
        redis_url=values.get("redis_url"),
        redis_password=environ.get("ALLOCATOR_REDIS_PASSWORD"),
        connect_timeout_ms=timeout_ms,
        database_url=values.get("database_url"),
        database_password=environ.get("ALLOCATOR_DATABASE_PASSWORD"),
        table=file.table,
        refresh_expiry=file.refresh_expiry,
        listen=values.get("listen", DEFAULT_LISTEN),
        tokens_file=values.get("tokens_file"),
        tls_cert=values.get("tls_cert"),
        tls_key=values.get("tls_key"),
        environ=environ,
    )


def state_directory(environ: Mapping[str, str]) -> Path:
    """Return where this user's state lives: `$XDG_STATE_HOME/allocator`, by default `~/.local/state/allocator`.

    Raises:
        ConfigurationError: When nothing says where.
    """
    if named := environ.get("ALLOCATOR_STATE_DIR"):
        return Path(os.path.abspath(named))  # noqa: PTH100  # not resolved: a link stays the user's choice
    base = _xdg_directory(environ, "XDG_STATE_HOME", ".local/state")
    if base is None:
        raise ConfigurationError(
            f"user {os.geteuid()} has no home directory to keep state in; "
            "set HOME, XDG_STATE_HOME or ALLOCATOR_STATE_DIR"
        )
    return base / "allocator"


def _xdg_directory(environ: Mapping[str, str], variable: str, in_home: str) -> Path | None:
    given = environ.get(variable, "")
    if given.startswith("/"):
        return Path(given)
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:  # a container's user that is in no list of users
        return None
    return home / in_home


@dataclass(frozen=True, slots=True)
class _File:
    values: dict[str, str] = field(default_factory=dict)
    table: TableNames = field(default_factory=TableNames)
    refresh_expiry: bool = True


def _from_file(named: str | None, environ: Mapping[str, str]) -> _File:
    if named:
        return _read(Path(named), must_exist=True) or _File()
    config_home = _xdg_directory(environ, "XDG_CONFIG_HOME", ".config")
    for directory in (Path(), config_home / "allocator" if config_home else None):
        found = _read(directory / FILE_NAME, must_exist=False) if directory else None
        if found:
            return found
    return _File()


def _read(path: Path, *, must_exist: bool) -> _File | None:
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise ConfigurationError(f"the settings file {path} does not exist; correct --config") from None
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"the settings file {path} cannot be read ({reason}); mend it or its rights") from None
    from allocator.model.files import SettingsFile, parse_toml

    found = parse_toml(path, text, SettingsFile)
    try:
        given = _File(found.given(), found.table_names(), found.database.refresh_expiry)
    except InvalidInputError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return given if found.model_fields_set else None
