"""Reading the small files that people and commands write, without trusting their size or form."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 4_194_304
"""Far more than any settings, pool, workers or lease file has; `/dev/zero` has more."""


def read_text(path: Path, *, only_regular: bool = False) -> str:
    """Return the text of a file.

    Args:
        path: The file.
        only_regular: Whether a pipe or a device is refused, which may keep its reader waiting for ever.

    Raises:
        OSError: When it cannot be read, has more than 4 MiB, or is a pipe or a device and must not be.
        UnicodeDecodeError: When it is not UTF-8.
    """
    return text_and_status(path, only_regular=only_regular)[0]


def text_and_status(path: Path, *, only_regular: bool = False) -> tuple[str, os.stat_result]:
    """Return the text of a file, as `read_text`, and the status of what was read, whatever has its name by now."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
    if only_regular and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content.decode("utf-8"), found


def toml_of(path: Path | str, text: str) -> dict[str, Any]:
    """Return what a text holds as TOML.

    Args:
        path: The file that it is from, for the error.
        text: The text.

    Raises:
        ConfigurationError: When it is not TOML; the error names the file and the place.
    """
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}; write it as TOML") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, a thousand arrays in each other
        raise ConfigurationError(f"{path}: a number is too long or the nesting too deep; shorten it") from None
