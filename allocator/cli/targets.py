"""Which leases a command line names: by port, by worker, or all that were claimed on this host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.context import report
from allocator.kernel.answers import Answers
from allocator.model.errors import HeldError, InvalidInputError, LeaseLostError
from allocator.model.names import WorkerId, check_name, check_port, check_token, shown
from allocator.model.values import replace
from allocator.operations.context import pool_rules
from allocator.operations.find import Here, find, is_here
from allocator.operations.listing import port_view

if TYPE_CHECKING:
    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease
    from allocator.operations.steps import Warn

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PORT|ORG/PLUGIN[#INSTANCE]]...", help="Ports, or workers.", autocompletion=completion.targets
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every lease that was claimed on this host by this user.")]


def parse_target(target: str) -> WorkerId | int:
    """Return the worker or the port that an argument names.

    Raises:
        InvalidInputError: When it names neither.
    """
    if "/" in target:
        return WorkerId.parse(target)
    if not target.lstrip("-").isdecimal():
        raise InvalidInputError(
            f"{shown(target)} is neither a port nor a worker; a worker is ORG/PLUGIN or ORG/PLUGIN#INSTANCE, "
            "for example org-123/email"
        )
    return check_port(target)


def chosen(
    context: CliContext, targets: list[str] | None, every_one: bool, token: str | None, verb: str
) -> list[Lease]:
    """Return the leases that a command line names, with their tokens.

    Raises:
        InvalidInputError: When it names none, or contradicts itself.
        HeldError: When a lease is held by somebody whose token is not here.
    """
    if every_one == bool(targets):
        raise InvalidInputError(f"name the leases to {verb}: ports, workers as ORG/PLUGIN, or --all")
    if every_one:
        found = [*context.files.all(context.pool, context.host), *_under_former_names(context)]
        if not found:
            report(f"no lease was claimed by this user on {context.host}; nothing to {verb}{_other_names(context)}")
        return found
    given = token or os.environ.get("ALLOCATOR_TOKEN")
    if given and len(targets or []) != 1:
        raise InvalidInputError("a token belongs to one lease; name just one port or worker with it")
    found = [lease for target in targets or [] if (lease := _one(context, target, given, verb))]
    if not given:
        found += [other for lease in found for other in further_ports(context, lease)]
    return list({(lease.port, lease.token): lease for lease in found}.values())


def held_by_others(context: CliContext, targets: list[str], host: str | None) -> list[Lease]:
    """Return the live leases that a command line names, whoever holds them, with a worker's further ports.

    Args:
        context: What the command works with.
        targets: Workers, or ports of the host.
        host: The only host that is meant; None for this one's ports, and for workers wherever they are.

    Raises:
        InvalidInputError: When a name or a port is none.
    """
    live = context.allocator.leases(host=None if host is None else check_name("host", host))
    found: list[Lease] = []
    for target in targets:
        meant = parse_target(target)
        if isinstance(meant, int):
            named = [one for one in live if one.port == meant and one.host == (host or context.host)]
        else:
            named = [one for one in live if meant in {one.worker, base_worker(one)}]
        if not named:
            report(f"{target} has no live lease{f' on {host}' if host else ''}; nothing to end")
        found += [one for one in named if one not in found]
    return found


def base_worker(lease: Lease) -> WorkerId:
    """Return the worker whose further port a lease may be of."""
    return WorkerId(lease.org, lease.plugin.partition("+")[0], lease.instance)


def further_ports(context: CliContext, lease: Lease) -> list[Lease]:
    """Return the saved leases of the further ports of a worker that has several."""
    return [
        other
        for other in context.files.all(context.pool, lease.host)
        if base_worker(other) == lease.worker != other.worker
    ]


def _one(context: CliContext, target: str, token: str | None, verb: str) -> Lease | None:
    named = parse_target(target)
    worker, port = (None, named) if isinstance(named, int) else (named, 0)
    saved = (
        context.files.find(context.pool, context.host, worker)
        if worker
        else context.files.load(context.pool, context.host, port)
    )
    if saved is None:
        before = [one for one in _under_former_names(context) if (one.worker == worker if worker else one.port == port)]
        saved = max(before, key=lambda one: one.fence, default=None)
    if saved and not token:
        return saved
    live = _live(context, worker, port)
    if token and (known := live or saved):
        return replace(known, token=check_token(token))
    if live:
        raise HeldError(
            f"port {live.port} on {live.host} is held by {live.worker}, and its token is not on this host; "
            "give it with --token or ALLOCATOR_TOKEN",
            holder=live,
        )
    if verb == "release":
        report(f"{target} has no lease on {context.host}; nothing to release{_other_names(context)}")
        return None
    raise LeaseLostError(f"{target} has no lease on {context.host}; claim it again{_other_names(context)}")


def _under_former_names(context: CliContext) -> list[Lease]:
    """Return the saved leases that this machine has from before its name changed; a name that was set is no such."""
    if context.settings.host is not None:
        return []
    found: list[Lease] = []
    for host in _other_hosts(context):
        if _is_here(context, host):
            report(
                f"this machine was called {host} before and is {context.host} now; its leases as {host} are found as "
                "well"
            )
            found += context.files.all(context.pool, host)
    return found


def _other_hosts(context: CliContext) -> list[str]:
    return sorted({lease.host for lease in context.files.all(context.pool)} - {context.host})


def _other_names(context: CliContext) -> str:
    """Return under which other names this user has leases, for the end of a sentence."""
    names = _other_hosts(context)
    return f"; this user has leases as host {', '.join(names)}: name it with --host" if names else ""


def _live(cli: CliContext, worker: WorkerId | None, port: int) -> Lease | None:
    """Return the live lease of a worker, or on a port, of this host."""
    context = cli.allocator.session.context
    rules = cli.allocator.run(pool_rules(context, cli.pool))
    if worker:
        (known,) = cli.allocator.run(find(rules, [worker]))
        found = known.lease
    else:
        found = cli.allocator.run(port_view(cli.pool, rules.namespace_of(context.host), port)).lease
        if found is None:
            rules.check_port(port)
    if found is None or found.host == cli.host:
        return found
    return found if cli.settings.host is None and _is_here(cli, found.host) else None


class _Aloud(Answers):
    def warn(self, step: Warn) -> None:
        report(step.sentence)


def _is_here(context: CliContext, host: str) -> bool:
    return (
        context.allocator.run(is_here(context.allocator.session.context, context.pool, host), _Aloud())
        is not Here.OTHER
    )
