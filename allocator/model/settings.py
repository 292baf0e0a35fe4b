"""Settings, declared once: from flags, then `ALLOCATOR_*` of the environment, then `allocator.toml`, then defaults.

The fields of `Settings` are the declaration: flags, variables, file keys, help texts, the reference page and the list
of secrets come from there. Files: `allocator.toml` in the working directory, then in `$XDG_CONFIG_HOME/allocator/`,
then in `/etc/allocator/`; each setting is taken from the first that gives it. `--config` names another file, which is
then the only one. State lives in `$ALLOCATOR_STATE_DIR`, otherwise in `$XDG_STATE_HOME/allocator`. As the XDG
specification asks, its variables count only when they hold absolute paths.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allocator.model.durations import parse_duration_ms
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import check_address, check_name, shown
from allocator.model.owned import found_text, why_not_trusted
from allocator.model.pools import SDK_V2
from allocator.model.small_files import text_and_status
from allocator.model.tables import TableNames
from allocator.model.values import Value, declared_fields, field, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILE_NAME = "allocator.toml"
SYSTEM_FILE = Path("/etc/allocator") / FILE_NAME
DEFAULT_TIMEOUT_S = 5
DEFAULT_LISTEN = "127.0.0.1:8577"


class Secret(Enum):
    """How much of a setting is secret.

    Attributes:
        NOTHING: It may be shown anywhere.
        PASSWORD: It is a URL, which may have a password in it.
        ALL: It is never shown.
    """

    NOTHING = "nothing"
    PASSWORD = "password"  # noqa: S105  # a word
    ALL = "all"


class Setting(Value, kw_only=True):
    """One setting, as it is declared.

    Attributes:
        name: Its name, from which flag, variable and file key are made.
        what: What it is, for help texts and the reference.
        metavar: What stands for its value in help texts.
        default: Its default, as a reader is shown it.
        read: Returns its value for a text that was given.
        has_flag: Whether commands take it as an option.
        in_file: Whether `allocator.toml` may have it.
        is_setting: Whether `Settings` has it; the others belong to single commands.
        secret: How much of it is secret.
    """

    name: str
    what: str
    metavar: str = "TEXT"
    default: str = ""
    read: Callable[[str], Any] = str
    has_flag: bool = True
    in_file: bool = True
    is_setting: bool = True
    secret: Secret = Secret.NOTHING

    @property
    def flag(self) -> str:
        """The option: `--redis-url`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The variable: `ALLOCATOR_REDIS_URL`."""
        return f"ALLOCATOR_{self.name.upper()}"

    @property
    def help(self) -> str:
        """The help text of the option: what it is, its default, its variable."""
        default = f"default: {self.default}; " if self.default else ""
        return f"{self.what}. [{default}{self.variable}]"


def _declared(name: str, what: str, value: object = None, **more: Any) -> Any:  # noqa: ANN401  # what `field` returns
    declared = Setting(name=name, what=what, **more)
    return field(default=value, repr=declared.secret is Secret.NOTHING, metadata={"setting": declared})


def _timeout_ms(text: str) -> int:
    timeout_ms = parse_duration_ms(text, what="connect timeout")
    if timeout_ms == 0:
        raise InvalidInputError("a connect timeout of 0 would never reach Redis; give for example 5s")
    return timeout_ms


def _log_format(text: str) -> str:
    if text not in {"text", "json"}:
        raise ConfigurationError(f"ALLOCATOR_LOG_FORMAT={shown(text)} is not a form of log; set text or json")
    return text


def _yes_or_no(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ConfigurationError(f"ALLOCATOR_TRACING={shown(text)} is neither yes nor no; set 1 or 0")
    return text == "1"


class Settings(Value, kw_only=True):
    """The settings of a command, or of an allocator of the library; what each is stands in its declaration.

    Attributes:
        table: The names of the table of workers and its columns.
        refresh_expiry: Whether `lease_expires_at` follows the renewals of a lease whose row is otherwise the same.
        refused: The settings files that were found and are not obeyed, each with the reason.
        environ: The environment that they were read from.
    """

    redis_url: str | None = _declared(
        "redis_url", "Redis to use", metavar="URL", default="embedded server", secret=Secret.PASSWORD
    )
    redis_password: str | None = _declared(
        "redis_password",
        "Password of Redis when its URL has none",
        default="that of the URL",
        has_flag=False,
        in_file=False,
        secret=Secret.ALL,
    )
    pool: str = _declared(
        "pool", "Pool", SDK_V2.name, metavar="POOL", default=SDK_V2.name, read=lambda text: check_name("pool", text)
    )
    host: str | None = _declared(
        "host",
        "This host's name; ports are unique per host",
        metavar="HOST",
        default="host name",
        read=lambda text: check_name("host", text),
    )
    advertise: str | None = _declared(
        "advertise",
        "Address of this host for others",
        metavar="ADDRESS",
        default="that of its route",
        read=check_address,
    )
    connect_timeout_ms: int = _declared(
        "connect_timeout",
        "Time that Redis or the database may be silent",
        DEFAULT_TIMEOUT_S * 1_000,
        default=f"{DEFAULT_TIMEOUT_S}s",
        read=_timeout_ms,
        has_flag=False,
    )
    database_url: str | None = _declared(
        "database_url", "Database to use", metavar="URL", default="SQLite file", secret=Secret.PASSWORD
    )
    database_password: str | None = _declared(
        "database_password",
        "Password of the database when its URL has none",
        default="that of the URL, or what libpq finds",
        has_flag=False,
        in_file=False,
        secret=Secret.ALL,
    )
    listen: str = _declared(
        "listen", "Address and port to listen on", DEFAULT_LISTEN, metavar="ADDRESS:PORT", default=DEFAULT_LISTEN
    )
    tokens_file: str | None = _declared(
        "tokens_file", "File of credentials, as 'token' writes it", metavar="FILE", default="none: loopback only"
    )
    tls_cert: str | None = _declared("tls_cert", "Certificate chain, PEM", metavar="FILE", default="none")
    tls_key: str | None = _declared("tls_key", "Key of the certificate, PEM", metavar="FILE", default="none")
    log_format: str | None = _declared(
        "log_format",
        "Form of the log: text or json",
        default="text on a terminal, otherwise json",
        read=_log_format,
        has_flag=False,
        in_file=False,
    )
    tracing: bool = _declared(
        "tracing", "Spans through OpenTelemetry: 1 or 0", False, default="0", read=_yes_or_no, has_flag=False,
        in_file=False,
    )  # fmt: skip
    table: TableNames = field(default_factory=TableNames)
    refresh_expiry: bool = True
    refused: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(repr=False)

    @property
    def timeout_s(self) -> float:
        """For how many seconds Redis or the database may be silent."""
        return self.connect_timeout_ms / 1_000

    @property
    def state_dir(self) -> Path:
        """Where lease files and the embedded server live.

        Raises:
            ConfigurationError: When no variable and no home directory names one.
        """
        return state_directory(self.environ)

    @property
    def agent_socket(self) -> Path:
        """Where the agent of this state directory serves the API, unless configured otherwise."""
        return self.state_dir / "agent.sock"

    @property
    def agent_lock(self) -> Path:
        """The file that the agent of this state directory holds locked, with its pid in it."""
        return self.state_dir / "agent.lock"


_ATTRIBUTES: dict[str, Setting] = {
    one.name: one.metadata["setting"] for one in declared_fields(Settings) if "setting" in one.metadata
}
SETTINGS: dict[str, Setting] = {declared.name: declared for declared in _ATTRIBUTES.values()} | {
    declared.name: declared
    for declared in (
        Setting(name="org", what="Organisation's id", metavar="ORG", in_file=False, is_setting=False),
        Setting(
            name="token",
            what="Token of the lease, when it was claimed elsewhere",
            metavar="TOKEN",
            default="the lease file's",
            in_file=False,
            is_setting=False,
            secret=Secret.ALL,
        ),
        Setting(
            name="config",
            what="Settings file, read instead of all others",
            metavar="FILE",
            default=FILE_NAME,
            in_file=False,
            is_setting=False,
        ),
        Setting(
            name="state_dir",
            what="Folder of lease files and of the embedded server",
            default="$XDG_STATE_HOME/allocator, which is ~/.local/state/allocator unless set",
            has_flag=False,
            in_file=False,
            is_setting=False,
        ),
    )
}
"""Every setting by its name, those of single commands included."""

FOREIGN_SECRETS = ("PGPASSWORD", "REDISCLI_AUTH")
"""Variables of other programs that hold a password: drivers of ours read the first, `redis-cli` the second."""

NAMES = tuple(name for name, declared in SETTINGS.items() if declared.in_file)
"""The settings that a file may have."""


def load_settings(
    flags: Mapping[str, str | None], environ: Mapping[str, str], *, config: str | None = None
) -> Settings:
    """Return the settings.

    Args:
        flags: What the command line or the library's caller gave, by setting; None where it gave nothing.
        environ: The environment.
        config: The settings file that was named, or None to look for one.

    Raises:
        ConfigurationError: When the file cannot be used.
        InvalidInputError: When a flag or variable cannot be right.
    """
    given = _from_files(config or environ.get(SETTINGS["config"].variable), environ)
    values: dict[str, Any] = {}
    from_file = set()
    for attribute, declared in _ATTRIBUTES.items():
        text = flags.get(declared.name)
        if text is None:
            text = environ.get(declared.variable)
        if not text and flags.get(declared.name) is None:
            text = given.values.get(declared.name)
            from_file.add(declared.name)
        if text is not None:
            values[attribute] = declared.read(text)
    for url, password in (("redis_url", "redis_password"), ("database_url", "database_password")):
        if given.doubted and url in from_file and values.get(url) and values.get(password):
            raise ConfigurationError(
                f"{SETTINGS[password].variable} is not sent where {given.doubted} points to; fix the file's owner and "
                f"rights, or name the server with {SETTINGS[url].flag}"
            )
    return Settings(
        **values,
        table=given.table,
        refresh_expiry=given.refresh_expiry,
        refused=given.refused,
        environ=environ,
    )


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a child process: no secret is in it, and a URL is there without its password."""
    secrets = {one.variable: one.secret for one in SETTINGS.values()} | dict.fromkeys(FOREIGN_SECRETS, Secret.ALL)
    kept: dict[str, str] = {}
    for name, value in environ.items():
        secret = secrets.get(name, Secret.NOTHING)
        if secret is Secret.NOTHING:
            kept[name] = value
        elif secret is Secret.PASSWORD and value:
            kept[name] = url_without_password(value)
    return kept


def url_without_password(url: str) -> str:
    """Return a URL of Redis or of a database without the passwords in it; its user and its other options stay."""
    before, at, address = url.rpartition("@")
    if at:
        scheme, _, user = before.partition("://")
        name = user.partition(":")[0]
        url = f"{scheme}://{name}{at if name else ''}{address}"
    location, mark, query = url.partition("?")
    kept = [part for part in query.split("&") if part and "pass" not in part.partition("=")[0].lower()]
    return f"{location}{mark if kept else ''}{'&'.join(kept)}"


def state_directory(environ: Mapping[str, str]) -> Path:
    """Return where this user's state lives: `$XDG_STATE_HOME/allocator`, by default `~/.local/state/allocator`.

    Raises:
        ConfigurationError: When no variable and no home directory names one.
    """
    if named := environ.get(SETTINGS["state_dir"].variable):
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


class _Given(Value):
    """The settings that one or several files give.

    Attributes:
        values: The settings.
        table: The names of the table of workers.
        refresh_expiry: As in `Settings`.
        has_table: Whether there is a `[database]`.
        refused: The files that are not obeyed.
        doubted: The file that was named although another user may change it, or an empty string.
    """

    values: dict[str, str] = field(default_factory=dict)
    table: TableNames = field(default_factory=TableNames)
    refresh_expiry: bool = True
    has_table: bool = False
    refused: tuple[str, ...] = ()
    doubted: str = ""

    def over(self, later: _Given) -> _Given:
        """Return these settings, and those of a later file where these have none; `[database]` is taken as a whole."""
        tables = self if self.has_table else later
        values = later.values | self.values
        refused = self.refused + later.refused
        return _Given(values, tables.table, tables.refresh_expiry, tables.has_table, refused)


def _from_files(named: str | None, environ: Mapping[str, str]) -> _Given:
    if named:
        return _named(Path(named))
    config_home = _xdg_directory(environ, "XDG_CONFIG_HOME", ".config")
    own = (
        [] if config_home is None or _is_hidden(config_home / "allocator") else [config_home / "allocator" / FILE_NAME]
    )
    given = _Given()
    for path in (Path(FILE_NAME), *own, SYSTEM_FILE):
        given = given.over(_found(path))
    return given


def _is_hidden(folder: Path) -> bool:
    """Return whether the way to a folder is closed, as a service finds its home under systemd's `ProtectHome=`."""
    try:
        folder.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _named(path: Path) -> _Given:
    """Return the settings of a file that somebody named: it is obeyed, whoever owns it."""
    try:
        text, found = text_and_status(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(f"the settings file {path} does not exist; correct --config") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    given, why = _parsed(path, text), why_not_trusted(found)
    return replace(given, doubted=f"{path} ({why})") if why else given


def _found(path: Path) -> _Given:
    """Return the settings of a file that was found: it is obeyed if it is the caller's or root's, and nobody else's."""
    try:
        text, why = found_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return _Given()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if why:
        message = f"the settings file {path.absolute()} is not obeyed ({why}); fix that, or name it with --config"
        return _Given(refused=(message,))
    return _parsed(path, text)


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return ConfigurationError(f"the settings file {path} cannot be read ({reason}); fix it or its rights")


def _parsed(path: Path, text: str) -> _Given:
    from allocator.model.files import parse_settings

    given, database = parse_settings(path, text, NAMES)
    if database is None:
        return _Given(given)
    try:
        return _Given(given, database.names(), database.refresh_expiry, has_table=True)
    except InvalidInputError as error:
        raise ConfigurationError(f"{path}: {error}") from None
