"""`release`: give leased ports back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.claim import TokenOption  # noqa: TC001  # Typer reads the annotations
from allocator.cli.context import cli_context, report
from allocator.cli.force import MISPLACED, ReasonOption, YesOption, confirm, operator
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption  # noqa: TC001  # typer reads them
from allocator.cli.targets import AllOption, Targets, chosen, held_by_others
from allocator.model.errors import HeldError, InvalidInputError
from allocator.operations.end import Forced
from allocator.operations.end import force as end_by_force

if TYPE_CHECKING:
    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(release)


def release(
    targets: Targets = None,
    every_one: AllOption = False,
    token: TokenOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="End leases that others hold: of any host, or of --host.")
    ] = False,
    reason: ReasonOption = None,
    yes: YesOption = False,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Release leased ports.

    With --force an operator ends leases whose holders are gone; the events record who did it, and why. A holder that
    is alive after all stops its worker at its next heartbeat.

    Example: allocator release 5556

    Example: allocator release org-123/email --force --reason 'web-7 burnt'
    """
    if force:
        if every_one or token or not targets:
            raise InvalidInputError(
                "--force ends leases that are named, without --all and --token: ports, or workers as "
                "org/plugin#instance; for all of a host 'allocator host forget HOST --force'"
            )
        with cli_context(pool, None, redis_url, config) as context:
            _end(context, held_by_others(context, targets, host), Forced(operator(context), reason or ""), yes=yes)
        return
    if reason is not None or yes:
        raise MISPLACED
    with cli_context(pool, host, redis_url, config) as context:
        refused: HeldError | None = None
        for lease in chosen(context, targets, every_one, token, "release"):
            try:
                ended = context.allocator.release(lease)
            except HeldError as error:  # somebody else has the port: a lease that was saved here has ended
                if every_one:
                    ended = False
                else:
                    refused = refused or error
                    ended = True
            if not ended:
                report(f"the lease of {lease.worker} on {lease.address} had ended already")
            context.files.remove(lease)
        if refused:
            raise refused


def _end(context: CliContext, found: list[Lease], forced: Forced, *, yes: bool) -> None:
    for lease in found:
        confirm(f"End the lease of {lease.worker} on {lease.address} ({lease.state}), for {forced.reason!r}?", yes=yes)
    for lease, ended in zip(found, context.allocator.run(end_by_force(found, forced)), strict=True):
        whose = f"the lease of {lease.worker} on {lease.address}"
        report(f"{whose} is ended; if its holder lives, it stops" if ended else f"{whose} had ended already")
