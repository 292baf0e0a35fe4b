"""The documents say what is so: their commands run, their programs run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("allocator/**/*.md")})
BLOCK = re.compile(r"(<!-- not run: [^>]+-->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(language: str) -> list:
    return [
        pytest.param(match[3], id=f"{path.relative_to(ROOT)}:{path.read_text()[: match.start()].count(chr(10)) + 1}")
        for path in DOCUMENTS
        for match in BLOCK.finditer(path.read_text())
        if match[2] == language and not match[1]
    ]


@pytest.fixture
def environment(tmp_path: Path, redis_url: str, pool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return (
        kept
        | {"XDG_STATE_HOME": str(tmp_path), "PATH": paths, "ALLOCATOR_REDIS_URL": redis_url}
        | {"ALLOCATOR_POOL": pool.name}
    )


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_run_as_written(text: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("python"))
def test_programs_run_as_written(text: str, environment: dict[str, str], tmp_path: Path) -> None:
    from_url = 'from_url(__import__("os").environ["ALLOCATOR_REDIS_URL"])'
    program = text.replace("from_url()", from_url)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(path: Path) -> None:
    broken = [target for target in LINK.findall(path.read_text()) if not (path.parent / target).exists()]
    assert broken == []
