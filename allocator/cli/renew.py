"""`renew`, once or again and again: a lost lease and a silent Redis end nothing for the leases that are left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.claim import TokenOption, TtlOption  # noqa: TC001  # Typer reads the annotations
from allocator.cli.context import cli_context, living_process, report, seconds
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption  # noqa: TC001  # typer reads them
from allocator.cli.targets import AllOption, Targets, chosen
from allocator.model.errors import InvalidInputError, StoreUnavailableError
from allocator.model.values import replace

if TYPE_CHECKING:
    from allocator.cli.context import CliContext
    from allocator.model.errors import LeaseLostError
    from allocator.model.leases import Lease


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(renew)


def renew(
    targets: Targets = None,
    every_one: AllOption = False,
    ttl: TtlOption = None,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="DURATION", help="Renew again and again, at this interval, for example 10s."),
    ] = None,
    pid: Annotated[
        str | None, typer.Option("--pid", metavar="PID", help="With --every: process after whose end to stop.")
    ] = None,
    token: TokenOption = None,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Renew leases: each ends one TTL from now.

    Example: allocator renew 5556 --every 10s --pid $$
    """
    interval_s = seconds(every, "interval")
    if pid is not None and interval_s is None:
        raise InvalidInputError("--pid goes with --every; add for example --every 10s")
    if interval_s is not None and interval_s < 0.05:
        raise InvalidInputError("an interval below 50ms only burdens Redis; give for example --every 10s")
    process = living_process(pid) if pid is not None else None
    ttl_s = seconds(ttl, "TTL")
    with cli_context(pool, host, redis_url, config) as context:
        leases = chosen(context, targets, every_one, token, "renew")
        if ttl_s is not None:
            leases = with_ttl(context, leases, round(ttl_s * 1_000))
        renewals = Renewals(context, leases, rewrite=ttl_s is not None)
        if interval_s is None:
            renewals.once()
        else:
            renewals.until_the_end_of(process, interval_s)
    if renewals.lost:
        raise renewals.lost


def with_ttl(context: CliContext, leases: list[Lease], ttl_ms: int) -> list[Lease]:
    """Return leases as they stand in Redis, which the holder may have changed since, with another TTL."""
    hosts = {lease.host for lease in leases}
    live = {(one.host, one.port, one.fence): one for host in hosts for one in context.allocator.leases(host=host)}
    return [
        replace(live.get((lease.host, lease.port, lease.fence), lease), token=lease.token, ttl_ms=ttl_ms)
        for lease in leases
    ]


class Renewals:
    """Leases that a command renews, and what it lost of them.

    Args:
        at: What the command works with.
        leases: The leases, with their tokens.
        rewrite: Whether their TTL is another than before.

    Attributes:
        leases: Those that are not lost.
        lost: The first loss, or None.
    """

    def __init__(self, context: CliContext, leases: list[Lease], *, rewrite: bool) -> None:
        self.leases = leases
        self.lost: LeaseLostError | None = None
        self._at = context
        self._rewrite = rewrite
        self._reached = False
        self._silent = False

    def once(self) -> None:
        """Renew all leases and bring their lease files up to date.

        Raises:
            StoreUnavailableError: When Redis has never answered yet; later on that is logged, and the leases are kept.
        """
        try:
            self._renew()
        except StoreUnavailableError as error:
            if not self._reached:
                raise
            if not self._silent:
                report(f"{error}; trying on, for the ports are still in use")
            self._silent = True
        else:
            self._reached, self._silent = True, False

    def until_the_end_of(self, pid: int | None, interval_s: float) -> None:
        """Renew at this interval until the process has ended, or for ever; or until no lease is left."""
        from allocator.kernel.identity import identify
        from allocator.kernel.processes import wait_for_exit

        process = identify(pid) if pid is not None else None
        while self.leases:
            self.once()
            if pid is None:
                time.sleep(interval_s)
            elif process is None or wait_for_exit(process, interval_s):
                report(f"process {pid} has ended; its leases end by their TTL")
                return

    def _renew(self) -> None:
        from allocator.operations.renew import renew

        allocator, files = self._at.allocator, self._at.files
        with allocator.session.span("renew", *self.leases) as span:
            outcomes = span.renewed(allocator.run(renew(allocator.session.context, self.leases, rewrite=self._rewrite)))
        for outcome in outcomes:
            lease = outcome.lease
            if outcome.lost is not None:
                files.remove(lease)
                if self.lost is not None:
                    report(str(outcome.lost))
                self.lost = self.lost or outcome.lost
                continue
            saved = files.load(lease.pool, lease.host, lease.port)
            if saved and saved.token == lease.token:
                files.save(lease)
        self.leases = [outcome.lease for outcome in outcomes if outcome.lost is None]
