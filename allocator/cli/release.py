"""`release`: give leased ports back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.cli.claim import TokenOption  # noqa: TC001  # Typer reads the annotations
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption, desk, talk
from allocator.cli.targets import AllOption, Targets, chosen
from allocator.model.errors import HeldError

if TYPE_CHECKING:
    import typer


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(release)


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
