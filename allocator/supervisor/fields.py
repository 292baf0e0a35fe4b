"""The fields of a worker, by name: on the command line and in a workers file, read by the same functions.

A value is text from the command line and text, a number or a table in a workers file. Every mistake is found here,
before anything is claimed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allocator.model.durations import parse_duration_ms
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import (
    MAX_INSTANCE,
    WorkerId,
    check_labels,
    check_name,
    check_plugin_name,
    check_port,
    environment_hint,
    shown,
)
from allocator.model.settings import without_secrets
from allocator.model.small_files import read_text
from allocator.operations.attempt import MAX_DECLINES, named_workers
from allocator.supervisor.restarts import RestartMode
from allocator.supervisor.spec import DEFAULT_MAX_RESTARTS, ReadyWhen, WorkerSpec, check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from allocator.client.session import ClaimArguments

MOST_REPLICAS = 1_000
MOST_RESTARTS = 1_000_000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def spec_of(values: Mapping[str, Any], environ: Mapping[str, str]) -> WorkerSpec:
    """Return the worker that converted values (see `convert`) make.

    Args:
        values: Its values, by field; what was left out has its default.
        environ: What its environment starts from.

    Raises:
        InvalidInputError: When the environment's port for the plugin is none.
    """
    environment = {**without_secrets(environ), **values.get("env_file", {}), **values.get("env", {})}
    worker = WorkerId(values["org"], values["plugin"], values.get("instance", 0))
    claim: ClaimArguments = {
        "org": worker.org,
        "instance": worker.instance,
        "port": values.get("port"),
        "hint": environment_hint(worker.plugin, environment),
        "ttl": values.get("ttl"),
        "labels": values.get("labels"),
        "priority": values.get("priority", 0),
    }
    return WorkerSpec(
        plugin=worker.plugin,
        claim=claim,
        command=values["command"],
        environment=environment,
        wait_s=values.get("wait"),
        ports=values.get("ports", ()),
        contiguous=values.get("contiguous", False),
        directory=values.get("directory"),
        port_argument=values.get("port_arg"),
        stop_path=values.get("stop_path"),
        health_path=values.get("health"),
        give_up_after_s=values.get("health_kill_after", 60.0) or None,
        output_in_events=not values.get("no_output_in_events", False),
        pass_token=values.get("pass_token", False),
        listen=values.get("listen_fd", False),
        drain_delay_s=values.get("drain_delay", 2.0),
        stop_timeout_s=values.get("stop_timeout", 5.0),
        health_interval_s=values.get("health_interval", 5.0),
        ready=values.get("ready", ReadyWhen.LISTENS),
        start_timeout_s=values.get("start_timeout", 60.0) or None,
        restart=values.get("restart", RestartMode.ON_FAILURE),
        max_restarts=values.get("max_restarts", DEFAULT_MAX_RESTARTS),
        max_declines=values.get("max_declines", MAX_DECLINES),
    )


def convert(field: str, value: object) -> Any:  # noqa: ANN401  # each field has a type of its own
    """Return the value of a field as `spec_of` takes it.

    Raises:
        InvalidInputError: When there is no such field, or its value cannot be right.
        ConfigurationError: When the file that it names cannot be used.
    """
    reader = FIELDS.get(field)
    if reader is None:
        raise InvalidInputError(f"{shown(field)} is not known; correct or delete it")
    return reader(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise InvalidInputError(f"{shown(str(value))} is not text; write it in quotes")


def _yes(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidInputError(f"{shown(str(value))} is neither true nor false")


def _whole(low: int, high: int, what: str) -> Callable[[object], int]:
    def read(value: object) -> int:
        text = str(value)
        if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,7}", text, re.ASCII) and low <= int(text) <= high:
            return int(text)
        raise InvalidInputError(f"{shown(text)} is not {what}; give a whole number from {low} to {high}")

    return read


def _duration(what: str, *, at_least_s: float = 0.0) -> Callable[[object], float]:
    def read(value: object) -> float:
        seconds = parse_duration_ms(_text(value), what=what) / 1_000
        if seconds < at_least_s:
            raise InvalidInputError(f"a {what} of {shown(str(value))} is too short; give for example 5s")
        return seconds

    return read


def _path(what: str) -> Callable[[object], str]:
    return lambda value: check_path(what, _text(value))


def _name(kind: str) -> Callable[[object], str]:
    return lambda value: check_name(kind, _text(value))


def _port(value: object) -> int:
    return check_port(value if isinstance(value, int) else _text(value))


def _command(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        items = [_text(item) for item in value]
    else:
        try:
            items = shlex.split(_text(value))
        except ValueError as error:
            raise InvalidInputError(f"{shown(str(value))} is not a command ({error}); close its quotes") from None
    if not items:
        raise InvalidInputError("the command is empty; give the parts of a command")
    if any("\0" in item for item in items):
        raise InvalidInputError(f"{shown(str(value))} holds a null character, which no command can be given; delete it")
    return items


def _port_arg(value: object) -> str:
    text = _text(value)
    if not text:
        raise InvalidInputError("the port's option is empty; give for example --port")
    if "\0" in text:
        raise InvalidInputError(f"{shown(text)} holds a null character; delete it")
    return text


def _ports(value: object) -> tuple[str, ...]:
    names = [_text(item) for item in value] if isinstance(value, list) else _text(value).split(",")
    named_workers(WorkerId("any", "any"), names)
    return tuple(names)


def _restart(value: object) -> RestartMode:
    try:
        return RestartMode(_text(value))
    except ValueError:
        raise InvalidInputError(
            f"{shown(str(value))} is not a restart policy; choose never, on-failure or always"
        ) from None


def _ready(value: object) -> ReadyWhen:
    try:
        return ReadyWhen(_text(value))
    except ValueError:
        raise InvalidInputError(
            f"{shown(str(value))} is not when a worker is ready; choose listens or started"
        ) from None


def _labels(value: object) -> dict[str, str]:
    if isinstance(value, list):
        value = dict(str(item).partition("=")[::2] for item in value)
    if not isinstance(value, dict):
        raise InvalidInputError(f'{shown(str(value))} is not a table of labels; write for example {{ team = "blue" }}')
    return check_labels({name: _text(item) for name, item in value.items()})


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidInputError(
            f'{shown(str(value))} is not a table of variables; write for example {{ MODE = "fast" }}'
        )
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name):
            raise InvalidInputError(f"{shown(name)} is not the name of a variable; use letters, digits and '_'")
        if "\0" in _text(text):
            raise InvalidInputError(f"the variable {name} holds a null character; delete it")
    return value


def _directory(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_dir():
        raise InvalidInputError(f"{shown(str(path))} is not a directory to run in; make or correct it")
    return path


def _env_file(value: object) -> dict[str, str]:
    paths = value if isinstance(value, list | tuple) else [value]
    found: dict[str, str] = {}
    for path in paths:
        found |= read_env_file(Path(_text(path)))
    return found


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a `.env` file, as python-dotenv reads it; nothing is put in for `${NAME}`.

    Raises:
        ConfigurationError: When it cannot be read, or a line has another form; it names the file and the line.
    """
    from io import StringIO

    from dotenv.parser import parse_stream

    try:
        text = read_text(path).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigurationError(f"the environment file {path} cannot be read ({why}); correct --env-file") from None
    found: dict[str, str] = {}
    for entry in parse_stream(StringIO(text, newline="")):
        line = entry.original.string.strip()
        if not line or (entry.key is None and not entry.error):
            continue
        skipped = entry.original.string[: entry.original.string.index(line)]
        where = f"{path}:{entry.original.line + len(skipped.splitlines())}"
        if entry.error and "=" in line:
            raise ConfigurationError(
                f"{where}: the value of {shown(_before_value(line))} has an open quote, or goes on after its end; "
                "correct that line"
            )
        if entry.value is None or not _VARIABLE.fullmatch(entry.key or "") or "\0" in entry.value:
            raise ConfigurationError(f"{where}: {shown(_before_value(line))} is not NAME=value; correct that line")
        found[entry.key or ""] = entry.value
    return found


def _before_value(text: str) -> str:
    """Return what may be shown of a line: its value may be a secret."""
    return text.partition("=")[0].removeprefix("export ").strip()


FIELDS: dict[str, Callable[[object], Any]] = {
    "plugin": lambda value: check_plugin_name(_text(value)),
    "org": _name("organisation"),
    "instance": _whole(0, MAX_INSTANCE, "an instance"),
    "replicas": _whole(1, MOST_REPLICAS, "a number of replicas"),
    "port": _port,
    "ports": _ports,
    "contiguous": _yes,
    "ttl": _duration("TTL", at_least_s=0.001),
    "wait": _duration("wait"),
    "priority": _whole(0, 9, "a priority"),
    "labels": _labels,
    "command": _command,
    "directory": _directory,
    "env": _environment,
    "env_file": _env_file,
    "port_arg": _port_arg,
    "pass_token": _yes,
    "no_output_in_events": _yes,
    "listen_fd": _yes,
    "drain_delay": _duration("drain delay"),
    "stop_timeout": _duration("stop timeout"),
    "stop_path": _path("stop"),
    "health": _path("health"),
    "health_interval": _duration("health interval", at_least_s=0.05),
    "health_kill_after": _duration("health limit"),
    "ready": _ready,
    "start_timeout": _duration("start timeout"),
    "restart": _restart,
    "max_restarts": _whole(0, MOST_RESTARTS, "a number of restarts"),
    "max_declines": _whole(0, 1_000, "a number of declines"),
}
"""The fields of a worker, and what reads the value of each."""
