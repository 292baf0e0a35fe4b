"""How a long-running command logs: lines for people on a terminal, a JSON object a line otherwise; one event one line.

What an event is about stands beside its sentence, by the names that listings use. No line holds a token.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from allocator.cli.context import report
from allocator.kernel.outlets import outlet
from allocator.model.leases import written_time
from allocator.model.settings import SETTINGS

ABOUT = ("pool", "host", "port", "org", "plugin", "instance", "fence")
"""What a line shows of its lease; the record has it as `lease`."""
MORE = ("state", "caller")
"""What a line may have besides: attributes of a log record, given as `extra`."""


class JsonLines(logging.Formatter):
    """A JSON object a line: `at`, `level`, `logger`, `message`, then what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; an error's trace is one member of it."""
        line: dict[str, Any] = {
            "at": written_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _about(record)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _about(record: logging.LogRecord) -> dict[str, Any]:
    lease, error = getattr(record, "lease", None), getattr(record, "error", None)
    if lease is not None:
        found = {name: getattr(lease, name) for name in ABOUT}
    else:
        found = {name: getattr(error, name, None) for name in ("host", "port", "worker")}
    found |= {name: getattr(record, name, None) for name in MORE}
    return {name: value for name, value in found.items() if value is not None}


class PlainLines(logging.Formatter):
    """A line for a person: the time, a level that is not the usual one, the sentence."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class OutletHandler(logging.Handler):
    """Hands lines to the outlet of standard error: whoever logs never waits for who reads."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # as in logging itself: a record that cannot be written stops nobody
            self.handleError(record)
            return
        outlet(2).write(f"{line}\n".encode("utf-8", "backslashreplace"))


def _report(lines: int, what: str) -> None:
    report(f"{lines} {'line' if lines == 1 else 'lines'} of {what} could not be written and were dropped")


def start_logging() -> None:
    """Send what is logged or printed to standard error, as `ALLOCATOR_LOG_FORMAT` or the terminal asks for.

    Raises:
        ConfigurationError: When that variable is neither `text` nor `json`.
    """
    given = os.environ.get(SETTINGS["log_format"].variable)
    wanted = SETTINGS["log_format"].read(given) if given else "text" if sys.stderr.isatty() else "json"
    handler = OutletHandler()
    outlet(1).report = lambda lines: _report(lines, "standard output")
    outlet(2).report = lambda lines: _report(lines, "standard error")
    handler.setFormatter(PlainLines() if wanted == "text" else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("allocator").setLevel(logging.INFO)
    report.log = logging.getLogger("allocator")
