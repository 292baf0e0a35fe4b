"""Which leases a command line names: by port, by worker, or all that were claimed on this host."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.options import talk
from allocator.client.arguments import check_token
from allocator.model.errors import HeldError, InvalidInputError, LeaseLostError
from allocator.model.names import WorkerId, check_port
from allocator.operations.context import pool_rules
from allocator.operations.find import find
from allocator.operations.listing import port_view

if TYPE_CHECKING:
    from allocator.cli.options import Desk
    from allocator.model.leases import Lease

Targets = Annotated[list[str] | None, typer.Argument(help="Ports, or workers as org/plugin#instance.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every lease that was claimed on this host by this user.")]


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
    worker = WorkerId.parse(target) if "/" in target else None
    port = check_port(target) if worker is None else 0
    saved = at.files.find(at.pool, at.host, worker) if worker else at.files.load(at.pool, at.host, port)
    if saved and not token:
        return saved
    live = _live(at, worker, port)
    if token and (known := live or saved):
        return replace(known, token=check_token(token))
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


def _live(at: Desk, worker: WorkerId | None, port: int) -> Lease | None:
    """Return the live lease of a worker, or on a port, of this host."""
    context = at.allocator.session.context
    rules = at.allocator.run(pool_rules(context, at.pool))
    if worker:
        (known,) = at.allocator.run(find(rules, [worker]))
        found = known.lease
    else:
        found = at.allocator.run(port_view(at.pool, rules.space_of(context.host), port)).lease
        if found is None:
            rules.check_port(port)
    return found if found and found.host == at.host else None
