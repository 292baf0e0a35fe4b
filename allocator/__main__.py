"""The `allocator` command: runs the command line and turns every error that a user can cause into one line."""

from __future__ import annotations

import os
import sys

from allocator.model.errors import EXIT_CONFIGURATION, EXIT_USAGE, AllocatorError

EXIT_INTERRUPTED = 130
EXTRAS = {"sqlalchemy": "sql", "alembic": "sql", "psycopg": "sql"}
"""What is installed only when it is asked for, and by which extra."""


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    open_closed_streams()
    sys.exit(status_of(sys.argv[1:]))


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that the caller closed (`2>&-`).

    Otherwise the socket to Redis would take their number, and talk would go where data goes: `print` writes to
    standard output when it is told that standard error is None.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def status_of(arguments: list[str]) -> int:  # noqa: PLR0911  # a kind of error a line
    """Run a command and return its exit status; errors are one line on standard error."""
    try:
        from allocator.cli.app import run_command

        status = run_command(arguments)
        sys.stdout.flush()
    except AllocatorError as error:
        return _say(str(error), getattr(error, "status", error.exit_code))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnicodeEncodeError:
        return _say("an argument is not valid text; use names of letters, digits, '.', '_' and '-'", EXIT_USAGE)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _say(f"{error.name} is not installed; pip install 'portlease[{extra}]'", EXIT_CONFIGURATION)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return _say(f"{what}{error.strerror or error}; make room or mend its rights", EXIT_CONFIGURATION)
    return status


def _say(message: str, status: int) -> int:
    print(f"allocator: {message}", file=sys.stderr)  # noqa: T201  # where errors are printed
    return status


if __name__ == "__main__":
    main()
