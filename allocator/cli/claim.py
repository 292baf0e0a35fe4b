"""`claim`: lease a port, or several, and print what was leased."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Self

import typer

from allocator.cli.app import ignore_interrupts, interrupts_raised
from allocator.cli.context import CliContext, cli_context, instance_of, living_process, report, seconds
from allocator.cli.options import ConfigOption, DatabaseOption, Format, HostOption, LeaseFormat, PoolOption, RedisOption
from allocator.cli.output import write_json
from allocator.client.lease_files import FileAnswers
from allocator.model.errors import ExhaustedError, InvalidInputError, LimitError, RecoveringError
from allocator.model.names import WorkerId, check_port, environment_hint, environment_names, port_variable, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from allocator.client.blocking import PortAllocator
    from allocator.client.session import ClaimArguments
    from allocator.model.leases import Lease
    from allocator.operations.steps import LeaseRecorder, StoreLeases, StoreTokens, Warn

Plugin = Annotated[str, typer.Argument(help="The worker's plugin, for example email.")]
OrgOption = Annotated[str, typer.Option("--org", envvar="ALLOCATOR_ORG", metavar="ORG", help="The organisation's id.")]
InstanceOption = Annotated[
    str,
    typer.Option(
        "--instance",
        metavar="NUMBER|auto",
        help="Number among the workers of the same plugin and organisation; auto: the same for a host and --key.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Key for --instance auto; one for each worker of a host [default: the host's name]",
    ),
]
PortOption = Annotated[str | None, typer.Option("--port", metavar="PORT", help="This port and no other.")]
PortsOption = Annotated[
    str | None,
    typer.Option("--ports", metavar="NAME,NAME", help="Names of several ports, all or none: http,debug,metrics."),
]
ContiguousOption = Annotated[
    bool,
    typer.Option(
        "--contiguous", help="Consecutive numbers for --ports. Later claims for single ports may be served first."
    ),
]
TtlOption = Annotated[
    str | None, typer.Option("--ttl", metavar="DURATION", help="Lifetime without a renewal: 30s, 10m, 1h.")
]
WaitOption = Annotated[
    str | None,
    typer.Option(
        "--wait", metavar="DURATION", help="Time to wait for a free port, for example 30s. [default: do not wait]"
    ),
]
PriorityOption = Annotated[
    str, typer.Option("--priority", metavar="0-9", help="Priority in the queue of --wait; 9 is served first.")
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", help="Label of the lease, for example health=/health; may be repeated."
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="Token of the lease, when another user or host claimed it. [ALLOCATOR_TOKEN]"
    ),
]


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(claim)


def claim(
    plugin: Plugin,
    org: OrgOption,
    instance: InstanceOption = "0",
    key: KeyOption = None,
    port: PortOption = None,
    ttl: TtlOption = None,
    wait: WaitOption = None,
    priority: PriorityOption = "0",
    label: LabelOption = None,
    pid: Annotated[str | None, typer.Option("--pid", metavar="PID", help="Process to bind the lease to.")] = None,
    token: TokenOption = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the worker's row in SQL before the port is printed.")
    ] = False,
    ports: PortsOption = None,
    contiguous: ContiguousOption = False,
    any_host: Annotated[
        bool, typer.Option("--any-host", help="Claim on the registered host with the most free ports.")
    ] = False,
    spread: Annotated[
        str | None,
        typer.Option(
            "--spread",
            metavar="org|plugin",
            help="With --any-host: prefer hosts with few workers of this org or plugin.",
        ),
    ] = None,
    pre_start: Annotated[
        bool,
        typer.Option(
            "--pre-start",
            help="State that the worker is not running: when a process listens on its port, claim another.",
        ),
    ] = False,
    form: LeaseFormat = Format.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Lease a port and print it. Claiming again for the same worker prints the same port.

    With --ports each port is printed as name=port; releasing the worker releases them all.
    With --any-host the port is on the registered host with the most free ports, and printed as host:port.

    Example: PORT=$(allocator claim email --org org-123)
    """
    arguments = claim_arguments(plugin, org, instance, port, ttl, label, priority)
    if pid is not None:
        arguments["pid"] = living_process(pid)
    arguments["pre_start"] = pre_start
    wait_s = seconds(wait, "wait")
    check_key(key, instance)
    by_key = instance == "auto" and (key is not None or not any_host)
    arguments["auto_instance"] &= not by_key
    check_placing(
        any_host=any_host, spread=spread, others={"--host": host, "--port": port, "--pid": pid, "--wait": wait}
    )
    alone = {"--port": port, "--token": token, "--any-host": any_host or None, "--record": record or None}
    check_several(ports, contiguous=contiguous, others=alone)
    with ExitStack() as stack:
        at = stack.enter_context(cli_context(pool, host, redis_url, config, database_url=database_url))
        if record:
            at.allocator.recorder = stack.enter_context(recorder(at))
        worker = WorkerId(org, plugin, arguments["instance"])
        worker = instance_of(at, worker, key or at.host) if by_key else worker
        arguments["instance"] = worker.instance
        with FinishedOrUndone(at.files) as answers:
            if ports is not None:
                several = at.allocator.operations.claim_ports(
                    plugin, ports.split(","), contiguous=contiguous, wait=wait_s, **arguments
                )
                leases = at.allocator.run(several, answers)
                write_named(leases, form)
                return
            if given := token or os.environ.get("ALLOCATOR_TOKEN"):
                arguments["token"] = given

            def claim_on(allocator: PortAllocator) -> Lease:
                one = allocator.operations.claim(plugin, wait=wait_s, record=record, **arguments)
                return allocator.run(one, answers)

            if any_host:
                known = (
                    [] if arguments["auto_instance"] else [one for one in at.files.all(at.pool) if one.worker == worker]
                )
                lease = claim_anywhere(at, worker, spread, known, claim_on)
            else:
                lease = claim_on(at.allocator)
        if pid is not None:
            from allocator.cli.checks.host_agent import warn_without_agent

            warn_without_agent(at)
        if any_host and form is Format.TEXT:
            print(lease.address)
        else:
            write_lease(lease, form)


def write_lease(lease: Lease, form: Format) -> None:
    """Write a lease that this command holds: the port alone, an object, or variables."""
    if form is Format.TEXT:
        print(lease.port)
    elif form is Format.JSON:
        write_json(lease.as_json(with_token=True))
    else:
        variables = {
            "PORT": str(lease.port),
            **dict.fromkeys(environment_names(lease.plugin), str(lease.port)),
            "ALLOCATOR_HOST": lease.host,
            "ALLOCATOR_FENCE": str(lease.fence),
        }
        for name, value in variables.items():
            print(f"export {name}={shlex.quote(value)}" if form is Format.SHELL else f"{name}={value}")


def write_named(leases: Mapping[str, Lease], form: Format) -> None:
    """Write several leases of one worker: `name=port` a line, an object by name, or variables."""
    if form is Format.JSON:
        write_json({name: lease.as_json(with_token=True) for name, lease in leases.items()})
        return
    if form is Format.TEXT:
        for name, lease in leases.items():
            print(f"{name}={lease.port}")
        return
    write_lease(next(iter(leases.values())), form)
    for name, lease in leases.items():
        variable = port_variable(name)
        print(f"export {variable}={lease.port}" if form is Format.SHELL else f"{variable}={lease.port}")


class FinishedOrUndone(FileAnswers):
    """The lease files of a claim; Ctrl-C undoes the claim from when its tokens are written until its leases are."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def store_tokens(self, step: StoreTokens) -> tuple[str, ...]:
        """Write down the tokens; from now on Ctrl-C is raised."""
        self._stack.enter_context(interrupts_raised())
        return super().store_tokens(step)

    def store_leases(self, step: StoreLeases) -> bool:
        """Write the lease files; from then on Ctrl-C is ignored."""
        done = super().store_leases(step)
        if step.leases:
            ignore_interrupts()
        return done

    def warn(self, step: Warn) -> None:
        """Print the sentence to standard error."""
        report(step.sentence)


def check_key(key: str | None, instance: str) -> None:
    """Check that a key has an instance to choose.

    Raises:
        InvalidInputError: When the instance is given.
    """
    if key is not None and instance != "auto":
        raise InvalidInputError("--key goes with --instance auto; add it, or leave --key out")


def check_several(ports: str | None, *, contiguous: bool, others: Mapping[str, object]) -> None:
    """Check that a claim for several ports has no option that is for one port only.

    Raises:
        InvalidInputError: When it does.
    """
    if ports is None:
        if contiguous:
            raise InvalidInputError("--contiguous goes with --ports; name them, for example --ports http,debug")
        return
    for name, value in others.items():
        if value is not None:
            raise InvalidInputError(f"--ports and {name} do not go together; leave one out")


def check_placing(*, any_host: bool, spread: str | None, others: dict[str, str | None]) -> None:
    """Check that a claim does not have both a host and `--any-host`.

    Raises:
        InvalidInputError: When it does.
    """
    if spread is not None and not any_host:
        raise InvalidInputError("--spread goes with --any-host; add it")
    if any_host and (given := [name for name, value in others.items() if value is not None]):
        raise InvalidInputError(f"--any-host chooses the host itself; leave {given[0]} out")


def claim_anywhere(
    context: CliContext,
    worker: WorkerId,
    spread: str | None,
    known: list[Lease],
    claim_on: Callable[[PortAllocator], Lease],
) -> Lease:
    """Claim a port on the worker's last host, otherwise on the best one; on the next when that is full.

    Args:
        context: What the command works with.
        worker: Who the lease is for.
        spread: What is to be spread over the hosts, if anything.
        known: The saved leases of this very worker.
        claim_on: Claims on one host.

    Raises:
        ExhaustedError: When no host is left.
    """
    from typing import cast

    from allocator.operations.hosts import Spread, place

    host = max(known, key=lambda lease: lease.fence).host if known else None
    tried: frozenset[str] = frozenset()
    while True:
        if host is None or host in tried:
            host = context.allocator.run(
                place(context.pool, worker, spread=cast("Spread | None", spread), without=tried)
            ).host
        try:
            return claim_on(context.allocator.for_host(host))
        except (LimitError, RecoveringError):
            raise
        except ExhaustedError:
            tried |= {host}


@contextmanager
def recorder(context: CliContext) -> Iterator[LeaseRecorder]:
    """Give what writes the rows of leases into the database that the settings name."""
    from allocator.cli.db import database_of
    from allocator.database.recorder import DatabaseRecorder

    with database_of(context.settings) as database:
        yield DatabaseRecorder(database, context.settings.table)


def claim_arguments(
    plugin: str,
    org: str,
    instance: str,
    port: str | None,
    ttl: str | None,
    labels: list[str] | None,
    priority: str = "0",
) -> ClaimArguments:
    """Return the options of a command line as the arguments of a claim.

    Raises:
        InvalidInputError: When one of them cannot be right.
    """
    lowest_free = instance == "auto"
    number = WorkerId.parse(f"{org}/{plugin}#{instance}").instance if instance.isdecimal() else 0 if lowest_free else -1
    worker = WorkerId(org, plugin, 0)
    if number < 0:
        raise InvalidInputError(f"{shown(instance)} is not an instance; give a whole number from 0, or auto")
    hint_port = environment_hint(worker.plugin, os.environ)
    if priority not in set("0123456789"):
        raise InvalidInputError(f"{shown(priority)} is not a priority; give a whole number from 0 to 9")
    pairs = dict(label.partition("=")[::2] for label in labels or [])
    ttl_s = seconds(ttl, "TTL")
    if ttl_s == 0:
        raise InvalidInputError("a TTL of 0 ends at once; give for example 30s")
    return {
        "org": org,
        "instance": number,
        "auto_instance": lowest_free,
        "priority": int(priority),
        "port": None if port is None else check_port(port),
        "hint": hint_port,
        "ttl": ttl_s,
        "labels": pairs,
    }
