"""The command of a worker: `{port}` and its like, `{port.debug}`, and a literal brace as `{{` or `}}`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from allocator.model.errors import InvalidInputError
from allocator.model.names import environment_names, port_variable, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from allocator.model.leases import Lease

NAMES = ("port", "host", "org", "plugin", "instance")
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def check_command(command: Sequence[str], ports: Sequence[str] = ()) -> None:
    """Check the templates in a command before anything is claimed.

    Args:
        command: The arguments of the command.
        ports: The names of the worker's ports, when it has several.

    Raises:
        InvalidInputError: When a template has an unknown name or a brace stands alone.
    """
    _fill(command, dict.fromkeys((*NAMES, *(f"port.{name}" for name in ports)), ""))


def filled_command(
    command: Sequence[str], port_argument: str | None, lease: Lease, ports: Mapping[str, int]
) -> list[str]:
    """Return the command with the lease's values in place of the templates.

    Args:
        command: The arguments of the command.
        port_argument: One more argument: with a template in it as it is, else an option that gets `=PORT`; None for
            none.
        lease: Whose values.
        ports: Its ports by name.
    """
    arguments = list(command)
    if port_argument is not None:
        arguments.append(port_argument if _PART.search(port_argument) else f"{port_argument}={{port}}")
    return _fill(
        arguments,
        {
            "port": str(lease.port),
            "host": lease.host,
            "org": lease.org,
            "plugin": lease.plugin,
            "instance": str(lease.instance),
        }
        | {f"port.{name}": str(port) for name, port in ports.items() if name},
    )


def _fill(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    def replacement(match: re.Match[str]) -> str:
        text = match[0]
        if text in {"{{", "}}"}:
            return text[0]
        if match[1] is None or match[1] not in values:
            raise InvalidInputError(
                f"{shown(text)} in the command is not a template; use {{{'}, {'.join(values)}}}, "
                "or write a literal brace twice"
            )
        return values[match[1]]

    return [_PART.sub(replacement, argument) for argument in command]


def worker_environment(
    base: Mapping[str, str], lease: Lease, ports: Mapping[str, int], *, with_token: bool = False
) -> dict[str, str]:
    """Return the environment of a worker: `base`, the port under its usual names, host and fence.

    Args:
        base: What it starts from.
        lease: Whose values.
        ports: Its ports by name.
        with_token: Whether the lease's token is in it too.
    """
    port = str(lease.port)
    environment = dict(base) | {
        "PORT": port,
        **dict.fromkeys(environment_names(lease.plugin), port),
        "HAY_WORKER_PORT": port,
        "ALLOCATOR_HOST": lease.host,
        "ALLOCATOR_FENCE": str(lease.fence),
    }
    environment |= {port_variable(name): str(number) for name, number in ports.items() if name}
    if with_token and lease.token:
        environment["ALLOCATOR_TOKEN"] = lease.token
    return environment
