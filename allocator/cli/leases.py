"""`claim`, `renew`, `release`."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.claiming import claim_and_save, claim_named
from allocator.cli.options import (
    ConfigOption,
    DatabaseOption,
    Desk,
    Format,
    HostOption,
    LeaseFormat,
    PoolOption,
    RedisOption,
    desk,
    talk,
)
from allocator.cli.output import write_lease, write_named
from allocator.cli.renewing import Renewals
from allocator.model.durations import parse_duration_ms
from allocator.model.errors import (
    ExhaustedError,
    HeldError,
    InvalidInputError,
    LeaseLostError,
    LimitError,
    RecoveringError,
)
from allocator.model.names import WorkerId, check_port, environment_hint, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from allocator.client.arguments import ClaimArguments
    from allocator.client.drivers import LeaseRecorder
    from allocator.model.leases import Lease

Plugin = Annotated[str, typer.Argument(help="The worker's plugin, for example email.")]
OrgOption = Annotated[str, typer.Option("--org", envvar="ALLOCATOR_ORG", help="The organisation's id.")]
InstanceOption = Annotated[
    str, typer.Option("--instance", help="Which worker of this plugin and organisation; auto: the lowest free number.")
]
PortOption = Annotated[str | None, typer.Option("--port", help="The only port that will do.")]
PortsOption = Annotated[str | None, typer.Option("--ports", help="Several ports, all or none: http,debug,metrics.")]
AdjacentOption = Annotated[
    bool,
    typer.Option(
        "--adjacent", help="With --ports: one after the other. Others may get ports before one who waits for these."
    ),
]
TtlOption = Annotated[str | None, typer.Option("--ttl", help="Lifetime without a renewal: 30s, 10m, 1h.")]
WaitOption = Annotated[str | None, typer.Option("--wait", help="How long to wait for a free port.")]
PriorityOption = Annotated[str, typer.Option("--priority", help="With --wait: 0 to 9, the highest is served first.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="A free word about the lease: name=value; may be repeated.")
]
TokenOption = Annotated[
    str | None, typer.Option("--token", help="The lease's token, when it was claimed elsewhere. [ALLOCATOR_TOKEN]")
]
Targets = Annotated[list[str] | None, typer.Argument(help="Ports, or workers as org/plugin#instance.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every lease that was claimed on this host by this user.")]


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command()(claim)
    application.command()(renew)
    application.command()(release)


def claim(
    plugin: Plugin,
    org: OrgOption,
    instance: InstanceOption = "0",
    port: PortOption = None,
    ttl: TtlOption = None,
    wait: WaitOption = None,
    priority: PriorityOption = "0",
    label: LabelOption = None,
    pid: Annotated[str | None, typer.Option("--pid", help="The process that the lease is for.")] = None,
    token: TokenOption = None,
    record: Annotated[bool, typer.Option("--record", help="Write the row of the worker before printing.")] = False,
    ports: PortsOption = None,
    adjacent: AdjacentOption = False,
    any_host: Annotated[bool, typer.Option("--any-host", help="On the host with most free ports.")] = False,
    spread: Annotated[
        str | None, typer.Option("--spread", help="With --any-host: first where fewest of this org or plugin are.")
    ] = None,
    form: LeaseFormat = Format.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Lease a port and print it. Claiming again for the same worker prints the same port.

    With --ports each port is printed as name=port; releasing the worker releases them all.
    With --any-host it is on the registered host with most free ports, and printed as host:port.

    Example: PORT=$(allocator claim email --org org-123)
    """
    arguments = claim_arguments(plugin, org, instance, port, ttl, label, priority)
    if pid is not None:
        arguments["pid"] = living_process(pid)
    wait_s = seconds(wait, "wait")
    worker = WorkerId(org, plugin, arguments["instance"])
    check_placing(
        any_host=any_host, spread=spread, others={"--host": host, "--port": port, "--pid": pid, "--wait": wait}
    )
    alone = {"--port": port, "--token": token, "--any-host": any_host or None, "--record": record or None}
    check_several(ports, adjacent=adjacent, others=alone | {"--instance auto": arguments["auto_instance"] or None})
    with ExitStack() as stack:
        at = stack.enter_context(desk(pool, host, redis_url, config, database_url=database_url))
        if record:
            at.allocator.recorder = stack.enter_context(recorder(at))
        given = token or os.environ.get("ALLOCATOR_TOKEN")
        if ports is not None:
            write_named(claim_named(at, worker, arguments, ports.split(","), adjacent=adjacent, wait_s=wait_s), form)
            return

        def claim_on(there: Desk) -> Lease:
            return claim_and_save(there, worker, arguments, wait_s=wait_s, token=given, record=record)

        known = [] if arguments["auto_instance"] else [one for one in at.files.all(at.pool) if one.worker == worker]
        lease = claim_anywhere(at, worker, spread, known, claim_on) if any_host else claim_on(at)
        if any_host and form is Format.TEXT:
            print(lease.address)
        else:
            write_lease(lease, form)


def check_several(ports: str | None, *, adjacent: bool, others: Mapping[str, object]) -> None:
    """Check that a claim for several ports asks for nothing that only one can have.

    Raises:
        InvalidInputError: When it does.
    """
    if ports is None:
        if adjacent:
            raise InvalidInputError("--adjacent goes with --ports; name them, for example --ports http,debug")
        return
    for name, value in others.items():
        if value is not None:
            raise InvalidInputError(f"--ports and {name} do not go together; leave one out")


def check_placing(*, any_host: bool, spread: str | None, others: dict[str, str | None]) -> None:
    """Check that a claim does not say both where and anywhere.

    Raises:
        InvalidInputError: When it does.
    """
    if spread is not None and not any_host:
        raise InvalidInputError("--spread goes with --any-host; add it")
    if any_host and (given := [name for name, value in others.items() if value is not None]):
        raise InvalidInputError(f"--any-host chooses the host itself; leave {given[0]} out")


def claim_anywhere(
    at: Desk, worker: WorkerId, spread: str | None, known: list[Lease], claim_on: Callable[[Desk], Lease]
) -> Lease:
    """Claim a port on the host where a worker is, else where it is best placed; on the next one when that filled up.

    Args:
        at: What the command works with.
        worker: Who the lease is for.
        spread: What is to be spread over the hosts, if anything.
        known: The leases that the worker has already, as far as their files tell.
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
            host = at.allocator.run(place(at.pool, worker, spread=cast("Spread | None", spread), without=tried)).host
        try:
            return claim_on(replace(at, allocator=at.allocator.for_host(host)))
        except (LimitError, RecoveringError):
            raise
        except ExhaustedError:
            tried |= {host}


@contextmanager
def recorder(at: Desk) -> Iterator[LeaseRecorder]:
    """Give what writes the rows of leases into the database that the settings name."""
    from allocator.cli.db import database_of
    from allocator.database.recorder import DatabaseRecorder

    with database_of(at.settings) as database:
        yield DatabaseRecorder(database, at.settings.table)


def claim_arguments(
    plugin: str,
    org: str,
    instance: str,
    port: str | None,
    ttl: str | None,
    labels: list[str] | None,
    priority: str = "0",
) -> ClaimArguments:
    """Return the words of a command line as the arguments of a claim.

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
    pairs = dict(word.partition("=")[::2] for word in labels or [])
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


def seconds(text: str | None, what: str) -> float | None:
    """Return a duration of the command line in seconds, or None when it was not given."""
    return None if text is None else parse_duration_ms(text, what=what) / 1_000


def living_process(text: str) -> int:
    """Return the pid of a process that lives.

    Raises:
        InvalidInputError: When the text is no pid or no such process lives.
    """
    from allocator.kernel.processes import identify

    if not text.isdecimal() or len(text) > 9 or identify(int(text)) is None:
        raise InvalidInputError(f"{shown(text)} is not the pid of a living process; give one, for example $PPID")
    return int(text)


def renew(
    targets: Targets = None,
    every_one: AllOption = False,
    ttl: TtlOption = None,
    every: Annotated[str | None, typer.Option("--every", help="Go on renewing, at this interval.")] = None,
    pid: Annotated[str | None, typer.Option("--pid", help="With --every: until this process has ended.")] = None,
    token: TokenOption = None,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Extend leases by their TTL from now.

    Example: allocator renew 5556 --every 10s --pid $$
    """
    interval_s = seconds(every, "interval")
    if pid is not None and interval_s is None:
        raise InvalidInputError("--pid goes with --every; add for example --every 10s")
    if interval_s is not None and interval_s < 0.05:
        raise InvalidInputError("an interval below 50ms only burdens Redis; give for example --every 10s")
    process = living_process(pid) if pid is not None else None
    ttl_s = seconds(ttl, "TTL")
    with desk(pool, host, redis_url, config) as at:
        leases = chosen(at, targets, every_one, token, "renew")
        if not leases:
            talk(f"no lease was claimed by this user on {at.host}; nothing to renew")
        if ttl_s is not None:
            leases = with_ttl(at, leases, round(ttl_s * 1_000))
        renewals = Renewals(at, leases, rewrite=ttl_s is not None)
        if interval_s is None:
            renewals.once()
        else:
            renewals.until_the_end_of(process, interval_s)
    if renewals.lost:
        raise renewals.lost


def with_ttl(at: Desk, leases: list[Lease], ttl_ms: int) -> list[Lease]:
    """Return leases as they stand in Redis, which the holder may have changed since, with another TTL."""
    live = {(lease.port, lease.fence): lease for lease in at.allocator.leases(host=at.host)}
    return [replace(live.get((lease.port, lease.fence), lease), token=lease.token, ttl_ms=ttl_ms) for lease in leases]


def release(
    targets: Targets = None,
    every_one: AllOption = False,
    token: TokenOption = None,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Give leased ports back.

    Example: allocator release 5556
    """
    with desk(pool, host, redis_url, config) as at:
        refused: HeldError | None = None
        for lease in chosen(at, targets, every_one, token, "release"):
            try:
                ended = at.allocator.release(lease)
            except HeldError as error:  # somebody else has the port: a lease that was saved here has ended
                if every_one:
                    ended = False
                else:
                    refused = refused or error
                    ended = True
            if not ended:
                talk(f"the lease of {lease.worker} on {lease.address} had ended already")
            at.files.remove(lease)
        if refused:
            raise refused


def chosen(at: Desk, targets: list[str] | None, every_one: bool, token: str | None, verb: str) -> list[Lease]:
    """Return the leases that a command line names, with their tokens.

    Raises:
        InvalidInputError: When it names none, or contradicts itself.
        HeldError: When a lease is held by somebody whose token is not here.
    """
    if every_one == bool(targets):
        raise InvalidInputError(f"say which leases to {verb}: ports, org/plugin#instance, or --all")
    if every_one:
        return at.files.all(at.pool, at.host)
    given = token or os.environ.get("ALLOCATOR_TOKEN")
    if given and len(targets or []) != 1:
        raise InvalidInputError("a token belongs to one lease; name just one port or worker with it")
    found = [lease for target in targets or [] if (lease := _one(at, target, given, verb))]
    if not given:
        found += [other for lease in found for other in further_ports(at, lease)]
    return list({(lease.port, lease.token): lease for lease in found}.values())


def further_ports(at: Desk, lease: Lease) -> list[Lease]:
    """Return the saved leases of the further ports of a worker that has several."""
    return [
        other
        for other in at.files.all(at.pool, at.host)
        if other.org == lease.org
        and other.instance == lease.instance
        and other.plugin.partition("+")[0] == lease.plugin
        and other.plugin != lease.plugin
    ]


def _one(at: Desk, target: str, token: str | None, verb: str) -> Lease | None:
    if "/" in target:
        worker = WorkerId.parse(target)
        saved = at.files.find(at.pool, at.host, worker)
        live = next((lease for lease in at.allocator.leases(host=at.host) if lease.worker == worker), None)
    else:
        port = check_port(target)
        saved = at.files.load(at.pool, at.host, port)
        live = next((lease for lease in at.allocator.leases(host=at.host) if lease.port == port), None)
        if not saved and not live:
            at.allocator.pool().check_port(port)
    if token:
        from allocator.client.arguments import check_token

        if live or saved:
            return replace(live or saved, token=check_token(token))  # type: ignore[type-var]  # one of them is a lease
    elif saved:
        return saved
    if live:
        raise HeldError(
            f"port {live.port} on {live.host} is held by {live.worker}, and its token is not on this host; "
            "give it with --token or ALLOCATOR_TOKEN",
            holder=live,
        )
    if verb == "release":
        talk(f"{target} has no lease on {at.host}; nothing to release")
        return None
    raise LeaseLostError(f"{target} has no lease on {at.host}; claim it again")
