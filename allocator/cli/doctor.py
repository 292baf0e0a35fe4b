"""`doctor`: what is wrong or risky on this host, each finding with what fixes it. It changes nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from allocator.cli.checks.findings import Finding, finding_of, patiently
from allocator.cli.checks.programs import running_programs
from allocator.cli.checks.starts import Starting, starting_workers
from allocator.cli.context import CliContext, cli_context
from allocator.cli.options import (
    ConfigOption,
    DatabaseOption,
    HostOption,
    ListFormat,
    PoolOption,
    RedisOption,
    RowsFormat,
)
from allocator.cli.output import write_json
from allocator.model.durations import format_duration
from allocator.model.errors import AllocatorError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.store.base import ServerInfo

FOUND = 1


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(doctor)


def doctor(
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    database_url: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Check Redis, the database, this host's kernel, agent, leases and files; exit 1 with findings.

    It compares the leases with the listening sockets of this host, the lease files of this user, and the table of
    workers. A server that does not answer is a finding too; the other checks still run.

    Example: allocator doctor
    """
    with cli_context(pool, host, redis_url, config, database_url=database_url, reads_only=True) as context:
        server: ServerInfo | None = None
        starting: list[Starting] = []
        condition = "away"
        try:
            server = context.allocator.store.server()
            findings = [*_with_redis(context), *_without_redis(context)]
            with suppress(AllocatorError):  # a finding of the leases has it
                starting = starting_workers(context)
        except AllocatorError as error:
            if not isinstance(error, StoreUnavailableError):  # it answers
                condition = "not usable as it is"
            findings = [finding_of("redis", error), *_builtin_pool(context), *_without_redis(context)]
        _write(context, server or condition, findings, starting, form)
    if findings:
        raise typer.Exit(FOUND)


def _with_redis(context: CliContext) -> Iterator[Finding]:
    from allocator.cli.checks import foreign_keys, host_agent, kernel, leases, leftovers, redis_server, table_of_workers

    yield from patiently("redis", lambda: redis_server.check_server(context))
    yield from patiently("rights", lambda: redis_server.check_rights(context))

    def of_this_host() -> Iterator[Finding]:
        rules = context.allocator.pool()
        yield from kernel.check_kernel(rules)
        yield from leases.check_host(context, rules)
        live = {lease.port: lease for lease in context.allocator.leases(host=context.host)}
        now = context.allocator.store.server_time()
        yield from leases.check_name(context, live, now)
        yield from leases.check_leases(rules, live, now)
        yield from leftovers.check_lease_files(context, live)
        yield from host_agent.check_bound_leases(context, live, now)

    yield from patiently("leases", of_this_host)
    yield from patiently("keys", lambda: foreign_keys.check_keys(context))
    yield from patiently("drift", lambda: table_of_workers.check_drift(context))


def _builtin_pool(context: CliContext) -> Iterator[Finding]:
    """Yield what is wrong with this kernel for a pool whose rules are known without Redis."""
    from allocator.cli.checks.kernel import check_kernel
    from allocator.model.pools import SDK_V2

    if context.pool == SDK_V2.name:
        yield from check_kernel(SDK_V2)


def _without_redis(context: CliContext) -> Iterator[Finding]:
    from allocator.cli.checks import host_agent, leftovers, table_of_workers

    yield from patiently("database", lambda: table_of_workers.check_table(context))
    yield from patiently("agent", lambda: host_agent.check_agent(context))
    yield from patiently("leftover", lambda: leftovers.check_files(context))
    yield from patiently("leftover", lambda: leftovers.check_embedded_server(context))


def _write(
    context: CliContext,
    server: ServerInfo | str,
    findings: list[Finding],
    starting: list[Starting],
    form: ListFormat,
) -> None:
    if form is ListFormat.JSON:
        known = ("kind", "version", "role", "eviction")
        facts = None if isinstance(server, str) else {name: getattr(server, name) for name in known}
        programs = [asdict(program) for program in running_programs()]
        # `mend` is the old name of `fix`, until version 0.3.
        found = [{**asdict(finding), "mend": finding.fix} for finding in findings]
        starts = [asdict(one) for one in starting]
        write_json({"server": facts, "programs": programs, "findings": found, "starting": starts})
        return
    if isinstance(server, str):
        print(f"server   {server}")
    else:
        print(f"server   {server.kind} {server.version}, {server.role or 'role unknown'}")
    print(f"host     {context.host}, pool {context.pool}")
    for program in running_programs():
        print(f"program  {program.name}, pid {program.pid}, for {format_duration(program.since_s * 1_000)}")
    for one in starting:
        print(f"starting {one.worker} on port {one.port} since {one.since}{_why_again(one)}")
    for finding in findings:
        print(f"finding  {finding.what}; {finding.fix}")
    if not findings:
        print("all well")


def _why_again(one: Starting) -> str:
    error = f": {one.last_error}" if one.last_error else ""
    return f", restart {one.restarts}{error}" if one.restarts else ""
