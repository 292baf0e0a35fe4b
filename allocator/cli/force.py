"""`--force --reason TEXT`: what an operator ends that somebody else holds; asked back at a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.context import report
from allocator.model.errors import InvalidInputError
from allocator.operations.end import Forced

if TYPE_CHECKING:
    from allocator.cli.context import CliContext

ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="With --force: why, for the events.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="With --force: do not ask at a terminal.")]

MISPLACED = InvalidInputError("--reason and --yes belong to --force; add it, or leave them out")


def operator(context: CliContext) -> str:
    """Return who types, as `user@host`."""
    import getpass

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{context.host}"


def forced(context: CliContext, *, force: bool, reason: str | None, yes: bool) -> Forced | None:
    """Return who ends leases of others and why, or None without `--force`.

    Raises:
        InvalidInputError: When there is no reason, or one without `--force`.
    """
    if force:
        return Forced(operator(context), reason or "")
    if reason is not None or yes:
        raise MISPLACED
    return None


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is forced, where somebody can answer.

    Raises:
        Exit: When the answer is no: with status 1, and nothing is changed.
    """
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, err=True):
        report("nothing was changed")
        raise typer.Exit(1)


def leases(count: int) -> str:
    """Return a number of leases as text."""
    return f"{count} lease{'s' if count != 1 else ''}"
