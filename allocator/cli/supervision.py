"""What `run` does: reads its command line in a child, then supervises one worker or many.

The parser of command lines takes 5 MB, which a supervisor would keep for as long as its worker lives, and 50 ms, in
which the supervisor loads what it needs itself. So a child reads the command line: it passes on the values of the
options, or reports what is wrong with them; nothing here loads the parser.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allocator.cli.context import cli_context, instance_of, report
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId, shown
from allocator.model.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.cli.context import CliContext
    from allocator.supervisor.spec import WorkerSpec

ENDED_BY_SIGNAL = 128
"""What a shell adds to a signal's number for the status of a command that it ended."""

_waits: list[int] = []
"""In a child of `run_apart`: the pipe to the parent, which waits for the values of the options."""


def hand_over(options: dict[str, Any]) -> int:
    """Supervise what the options of `run` ask for, or leave that to the parent that waits for them.

    Returns:
        The exit status of this process.
    """
    if not _waits:
        return supervise(options)
    with open(_waits[0], "wb") as pipe:  # noqa: PTH123  # a descriptor
        pipe.write(json.dumps(options).encode())
    return 0


def run_apart(arguments: Sequence[str], read: Callable[[Sequence[str]], int]) -> int:
    """Run the command `run`. This returns in the child too: the caller ends with the status that it gets.

    Args:
        arguments: The arguments after `allocator`.
        read: Runs the command that they name, which calls `hand_over`, and returns its exit status.

    Returns:
        Its exit status: the worker's, or that of reading the command line where there is nothing to supervise.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _waits.append(writer)
        return read(arguments)
    os.close(writer)
    _load()
    with open(reader, "rb") as pipe:  # noqa: PTH123  # a descriptor
        passed_on = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not passed_on:
        return status if status >= 0 else ENDED_BY_SIGNAL - status
    return supervise(json.loads(passed_on))


def _load() -> None:
    """Load what a supervisor needs, while the child reads the command line."""
    from allocator.cli import logs
    from allocator.client import blocking, lease_files
    from allocator.supervisor import fields, replicas, run, start

    del logs, blocking, lease_files, fields, replicas, run, start


def supervise(options: dict[str, Any]) -> int:
    """Supervise what the options ask for until it has ended; return its exit status.

    Args:
        options: The values of the options.
    """
    from allocator.cli.logs import start_logging
    from allocator.client.counts import HolderMetrics, serve_registry
    from allocator.supervisor.run import Supervision, run_workers

    by_key = options["instance"] == "auto"
    orphans_end = _choice(options["orphan"], "--orphan", ("kill", "keep")) == "kill"
    policy = None if options["on_lost"] is None else _choice(options["on_lost"], "--on-lost", ("keep", "stop"))
    specs = _specs(options, by_key=by_key, orphans_end=orphans_end)
    start_logging()
    with cli_context(*options["settings"]) as context:
        context.allocator.session.on_lost = _policy(context, policy)
        if by_key:
            (only,) = specs
            worker = instance_of(context, WorkerId(only.claim["org"], only.plugin), options["key"] or context.host)
            specs = [replace(only, claim={**only.claim, "instance": worker.instance})]
        supervision = Supervision(together=len(specs) > 1, orphans_end=orphans_end, report=report, files=context.files)
        with contextlib.ExitStack() as stack:
            if options["metrics_listen"] is not None:
                registry = stack.enter_context(serve_registry(options["metrics_listen"]))
                registry.register(HolderMetrics(context.allocator))
            return run_workers(context.allocator, specs, supervision)


def _specs(options: dict[str, Any], *, by_key: bool, orphans_end: bool) -> list[WorkerSpec]:
    """Return what to run, whole and checked: nothing is claimed before."""
    from allocator.supervisor.fields import convert, spec_of
    from allocator.supervisor.replicas import replicated, with_named_output
    from allocator.supervisor.spec import check_spec

    if by_key and (options["replicas"] != "1" or options["workers_file"]):
        raise InvalidInputError("--instance auto is of one worker; leave --replicas and --workers out")
    own = {field: options[field] for field in ("plugin", "command", "port")}
    values = {field: convert(field, value) for field, value in options["fields"].items() if value is not None}
    count = convert("replicas", options["replicas"])
    if options["workers_file"] is not None:
        if any(own.values()) or count > 1:
            raise InvalidInputError("--workers has what to run; omit the plugin, its command, --port and --replicas")
        from allocator.supervisor.workers_file import read_workers_file

        listed = read_workers_file(Path(options["workers_file"]), values, os.environ)
        return with_named_output(listed, orphans_end=orphans_end)
    if not own["plugin"]:
        raise InvalidInputError("there is no plugin; name one, or --workers FILE")
    if "org" not in values:
        raise InvalidInputError("there is no organisation; give its id: allocator run PLUGIN --org ORG -- COMMAND")
    if not own["command"]:
        raise InvalidInputError("there is no command to run; give one after --")
    values |= {field: convert(field, value) for field, value in own.items() if value is not None}
    spec = spec_of(values | {"instance": convert("instance", "0" if by_key else options["instance"])}, os.environ)
    check_spec(spec)
    return with_named_output(replicated(spec, count), orphans_end=orphans_end)


def _choice(value: str, option: str, choices: tuple[str, str]) -> str:
    if value in choices:
        return value
    raise InvalidInputError(f"{shown(value)} is not a value of {option}; choose {choices[0]} or {choices[1]}")


def _policy(context: CliContext, given: str | None) -> Literal["keep", "stop"]:
    """Return what to do about a doubtful lease: a port that is unique over the fleet has no kernel to arbitrate."""
    if given == "stop":
        return "stop"
    if context.allocator.pool().scope == "host":
        return "keep"
    if given == "keep":
        raise InvalidInputError(
            f"--on-lost keep is not for pool {context.pool}: its ports are unique over all hosts, and "
            "no one kernel knows who has which; leave it out"
        )
    return "stop"
