"""A group of commands: its help lists them under headings, each with a whole sentence, whatever typer is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Mapping


class CommandGroup(TyperGroup):
    """A group whose commands stand under headings."""

    headings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The commands by heading; those of no heading come last, under `Commands`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  # typer's own copy of click, or click
        """Write the commands with the first sentence of their help, none of which is cut."""
        named = {name for names in self.headings.values() for name in names}
        rest = tuple(name for name in self.list_commands(ctx) if name not in named)
        for heading, names in (*self.headings.items(), ("Commands", rest)):
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name, summary(command.help or "")) for name, command in commands if command is not None]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class MainGroup(CommandGroup):
    """The commands of `allocator`."""

    headings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "For workers": ("claim", "renew", "release", "run", "resolve"),
        "For looking": ("ls", "show", "who", "events", "top"),
        "For operators": ("host", "pool", "doctor", "reconcile", "adopt", "db"),
        "For setting up": ("agent", "serve", "token", "export", "embedded"),
    }


def summary(text: str) -> str:
    """Return the first sentence of a help text, on one line."""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".") + "."
