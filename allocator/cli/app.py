"""Runs a command: finds it, reads its arguments, and lets it notice Ctrl-C where something must be undone first.

A module of commands is imported only when one of its commands is called. Elsewhere Ctrl-C ends a command at once
(`allocator.__main__`); where it is ignored, as in a shell's background command, it stays ignored.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from allocator.cli.groups import MainGroup
from allocator.model.errors import EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

MAX_USAGE_LINE = 300

_MODULES = {
    "claim": "claim",
    "renew": "renew",
    "release": "release",
    "run": "run",
    "agent": "agent",
    "ls": "ls",
    "show": "views",
    "who": "views",
    "events": "events",
    "resolve": "services",
    "export": "export",
    "pool": "pool",
    "host": "host",
    "doctor": "doctor",
    "db": "db",
    "reconcile": "reconcile",
    "adopt": "adopt",
    "top": "top",
    "serve": "serve",
    "token": "serve",
    "embedded": "embedded",
}


def _application(names: Sequence[str]) -> typer.Typer:
    application = typer.Typer(
        name="allocator",
        cls=MainGroup,
        help="Lease TCP ports to workers: claim a port, renew its lease, release it.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    application.callback()(_nothing)
    for module in dict.fromkeys(_MODULES[name] for name in names):
        import_module(f"allocator.cli.{module}").register(application)
    return application


def _print_version(asked: bool) -> None:  # as typer calls it
    if asked:
        from allocator import __version__

        typer.echo(f"portlease {__version__}")
        raise typer.Exit


def _nothing(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Lease TCP ports to workers: claim a port, renew its lease, release it."""


OLD_OPTIONS = {"--adjacent": "--contiguous", "--procfile": "--workers"}
"""Options by their old names, which work until version 0.3; `docs/reference/commands.md` lists them."""


def with_new_names(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the present names of options, up to a worker's command."""
    own = arguments.index("--") if "--" in arguments else len(arguments)
    renamed = []
    for argument in arguments[:own]:
        name, equals, value = argument.partition("=")
        renamed.append(f"{OLD_OPTIONS.get(name, name)}{equals}{value}")
    return [*renamed, *arguments[own:]]


def run_command(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: The arguments after `allocator`.

    Returns:
        Its exit status.
    """
    import os

    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    completing = any(name.startswith("_ALLOCATOR_COMPLETE") for name in os.environ)
    names = [wanted] if wanted in _MODULES and not completing else list(_MODULES)
    command = get_command(_application([name for name in names if name]))
    assert isinstance(command, TyperGroup)  # noqa: S101  # a callback makes it one
    return _invoke(command, with_new_names(arguments))


def _invoke(command: TyperGroup, arguments: list[str]) -> int:
    from typer import Exit

    try:
        status = command.main(args=arguments, prog_name="allocator", standalone_mode=False)
    except Exit as ended:
        return int(ended.exit_code)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # which typer ends with status 1
            raise ended.__context__ from None
        raise
    except Exception as error:
        text = getattr(error, "format_message", None)
        if text is None:
            if type(error).__name__ == "Abort":
                raise KeyboardInterrupt from error
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(text(), err=True)
        else:
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "allocator"
            message = one_line(str(text()))
            typer.echo(f"allocator: {message}{' See' if message.endswith('?') else '; see'} '{path} --help'", err=True)
        return EXIT_USAGE
    return status if isinstance(status, int) else 0


def one_line(message: str) -> str:
    """Return a message of the parser, which repeats what was typed, fit for one line of at most 300 characters."""
    printable = "".join(character if character.isprintable() else " " for character in message)
    text = " ".join(printable.split()).rstrip(".")
    return text if len(text) <= MAX_USAGE_LINE else text[:MAX_USAGE_LINE] + "…"


@contextmanager
def interrupts_raised() -> Iterator[list[int]]:
    """Make Ctrl-C raise KeyboardInterrupt inside the block.

    Gives the list of those that came: one that falls into a destructor is printed by Python and goes no further, so
    that a block that would go on for ever has to look.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield came
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def ignore_interrupts() -> None:
    """From now on Ctrl-C comes too late: what was asked for is done and only has to be printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
