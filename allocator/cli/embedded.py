"""`embedded status`, `embedded stop`."""

from __future__ import annotations

import typer

from allocator.cli.context import read_settings, report
from allocator.cli.groups import CommandGroup
from allocator.cli.options import ConfigOption, ListFormat, RowsFormat
from allocator.cli.output import write_rows
from allocator.model.durations import format_duration

NOT_RUNNING = 3
"""What `systemctl status` exits with for a service that does not run."""


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        cls=CommandGroup, help="The embedded server, which is used when no Redis is configured.", no_args_is_help=True
    )
    group.command("status")(status)
    group.command("stop")(stop)
    application.add_typer(group, name="embedded")


def status(form: RowsFormat = ListFormat.TEXT, config: ConfigOption = None) -> None:
    """Show the embedded server; exit 3 when it does not run.

    Example: allocator embedded status
    """
    from allocator.store.embedded import EmbeddedServer

    settings = read_settings(None, None, None, config)
    found = EmbeddedServer(settings.state_dir).status()
    if found is None:
        report("no embedded server runs; the next command that needs one starts it")
        raise typer.Exit(NOT_RUNNING)
    headings = ("PID", "VERSION", "SOCKET", "DATA", "MEMORY", "UPTIME", "PERSISTENT")
    memory = f"{found.memory_bytes / 1_048_576:.1f} MiB" if form is ListFormat.TEXT else found.memory_bytes
    uptime = format_duration(found.uptime_s * 1_000) if form is ListFormat.TEXT else found.uptime_s
    row = (found.pid, found.version, str(found.socket), str(found.data_dir), memory, uptime, found.persistent)
    write_rows(headings, [row], form)


def stop(config: ConfigOption = None) -> None:
    """Stop the embedded server; its data stays.

    Example: allocator embedded stop
    """
    from allocator.store.embedded import EmbeddedServer

    settings = read_settings(None, None, None, config)
    report("the embedded server is stopped" if EmbeddedServer(settings.state_dir).stop() else "no embedded server runs")
