"""Which file runs as a command is found as a shell finds it."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from allocator.kernel.processes import find_program

if TYPE_CHECKING:
    from pathlib import Path


def test_a_program_is_found_where_a_shell_finds_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "tool").write_text("#!/bin/sh\n")
    (second / "tool").chmod(0o755)
    (first / "folder").mkdir()
    path = f"{first}:{second}"
    assert find_program("tool", path) == str(second / "tool") == shutil.which("tool", path=path)
    assert find_program(str(second / "tool"), path) == str(second / "tool")
    assert find_program(str(first / "tool"), path) is None
    assert find_program("folder", path) is None
    assert find_program("x" * 300, path) is None
    assert find_program(sys.executable) == sys.executable
