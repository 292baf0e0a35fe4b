"""The `allocator` command: runs the command line and turns every error that a user can cause into one line.

It rests on this: a command that is interrupted ends at once, wherever it is, and what must be undone first reports it
itself (`cli.app`). Nothing that a command loads may therefore need a tidy end, and nothing may be imported here
before `main` has begun: until then Ctrl-C shows a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

EXIT_INTERRUPTED = 130
EXTRAS = {"sqlalchemy": "sql", "alembic": "sql", "psycopg": "sql"}
"""What is installed only when it is asked for, and by which extra."""

NEED_A_TIDY_END = {"logging", "asyncio", "concurrent.futures", "multiprocessing", "sqlalchemy"}
"""Modules that do something at the end, or whose threads and connections have to be ended first."""


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    obeyed = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # a shell's background command ignores Ctrl-C
    if obeyed:
        signal.signal(signal.SIGINT, end_at_once)
    open_closed_streams()
    status = status_of(sys.argv[1:], may_fork=True)
    _finish_output()
    _discard_messages_that_nobody_reads()
    if obeyed:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but Python's own end, which would show a traceback
    if not NEED_A_TIDY_END & sys.modules.keys() and sys.gettrace() is None:
        _end(status)
    sys.exit(status)


def _end(status: int) -> None:
    """End the process without taking every module apart first, which takes a fifth of a claim."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever should have read it is gone, and the status states what became of it
            continue
    os._exit(status)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process on Ctrl-C silently: a KeyboardInterrupt in the middle of an import shows a traceback."""
    del number, frame
    os._exit(EXIT_INTERRUPTED)


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that the caller closed (`2>&-`).

    Otherwise the socket to Redis would take their number, and talk would go where data goes: `print` writes to
    standard output when standard error is None.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a process may have any name, and a terminal any encoding


def status_of(arguments: list[str], *, may_fork: bool = False) -> int:  # noqa: PLR0911  # a kind of error a line
    """Run a command and return its exit status; errors are one line on standard error.

    Args:
        arguments: The arguments after `allocator`.
        may_fork: Whether this may return in a child too, as it does for `run`; the caller ends with the status.
    """
    from allocator.model.errors import EXIT_CONFIGURATION, EXIT_USAGE, AllocatorError

    try:
        if arguments == ["--version"]:  # spared the time that a command line takes to make
            status = _show_version()
        elif may_fork and next((argument for argument in arguments if not argument.startswith("-")), None) == "run":
            from allocator.cli.supervision import run_apart

            status = run_apart(arguments, _run_command)
        else:
            status = _run_command(arguments)
        sys.stdout.flush()
    except AllocatorError as error:
        return _report(str(error), getattr(error, "status", error.exit_code), error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return 0
    except UnicodeEncodeError:
        return _report("an argument is not valid text; use names of letters, digits, '.', '_' and '-'", EXIT_USAGE)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _report(f"{error.name} is not installed; pip install 'portlease[{extra}]'", EXIT_CONFIGURATION)
    except OSError as error:
        _discard_output()
        what = os.fsdecode(error.filename) if error.filename else "standard output or a file of this command"
        return _report(
            f"{what} could not be used ({error.strerror or error}); make room or fix its rights", EXIT_CONFIGURATION
        )
    return status


def _run_command(arguments: Sequence[str]) -> int:
    from allocator.cli.app import run_command

    return run_command(arguments)


def _show_version() -> int:
    from allocator import __version__

    sys.stdout.write(f"portlease {__version__}\n")
    return 0


def _finish_output() -> None:
    """Let the lines of a long-running command out, as far as somebody reads them."""
    outlets = sys.modules.get("allocator.kernel.outlets")
    if outlets is not None:
        outlets.flush_outlets()


def _discard_output() -> None:
    """Send what is still to be written nowhere: Python would complain about it at its end."""
    from contextlib import suppress

    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _discard_messages_that_nobody_reads() -> None:
    """Send what standard error did not take nowhere: Python would try again at its end, and exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _report(message: str, status: int, error: Exception | None = None) -> int:
    from contextlib import suppress

    from allocator.cli.context import report

    if report.log is not None:  # a long-running command: its last message is a line of its log
        report.log.error("%s", message, extra={"error": error})
        return status
    from allocator.kernel.outlets import PATIENCE_S, select_room

    with suppress(OSError):  # nobody listens: the status states it too
        if select_room(2, PATIENCE_S):
            print(f"allocator: {message}", file=sys.stderr)  # noqa: T201  # where errors are printed
    return status


if __name__ == "__main__":
    main()
