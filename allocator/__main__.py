"""The `allocator` command: runs the command line and turns every error that a user can cause into one line."""

from __future__ import annotations

import errno
import os
import sys

from allocator.model.errors import EXIT_CONFIGURATION, EXIT_USAGE, AllocatorError

EXIT_INTERRUPTED = 130
_STORAGE_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOTDIR, errno.EIO}


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    sys.exit(status_of(sys.argv[1:]))


def status_of(arguments: list[str]) -> int:
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
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        what = f"{error.filename}: " if error.filename else ""
        return _say(f"{what}{error.strerror}; make room or mend its rights", EXIT_CONFIGURATION)
    return status


def _say(message: str, status: int) -> int:
    print(f"allocator: {message}", file=sys.stderr)  # noqa: T201  # where errors are printed
    return status


if __name__ == "__main__":
    main()
