"""The road to a lease is short: few files run on it, and those of the command line stand in CONTRIBUTING.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from allocator import PoolSpec

ROOT = Path(__file__).parents[2]
BELOW = ("model/", "kernel/")
"""Values, and this host: what is called there needs no reading to understand a claim."""


@pytest.fixture
def followed(redis_url: str, pool: PoolSpec, tmp_path: Path) -> Any:
    """Run a child that is followed; return which files ran functions and which scripts were sent."""
    variables = {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name, "ALLOCATOR_HOST": "web-1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    environment = kept | variables | {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*options: str) -> dict[str, list[str]]:
        arguments = options if options[0] == "command" else (*options, redis_url, pool.name)
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests/followed.py"), *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stderr.splitlines()[-1])

    return run


def above(files: list[str]) -> list[str]:
    return [file for file in files if not file.startswith(BELOW)]


def documented() -> list[str]:
    """Return the files that CONTRIBUTING.md lists under a claim, in alphabetical order."""
    part = (ROOT / "CONTRIBUTING.md").read_text().partition("What happens on `allocator claim`")[2]
    block = part.partition("```text\n")[2].partition("```")[0]
    return sorted(re.findall(r"^allocator/(\S+\.py)", block, re.MULTILINE))


def test_a_claim_at_the_command_line_runs_the_files_that_are_documented(followed: Any) -> None:
    files = followed("command", "claim", "email", "--org", "o")["files"]
    assert above(files) == documented()
    assert len(above(files)) <= 15
    assert len(files) <= 25, files


@pytest.mark.parametrize(("face", "most_above", "most"), [("library", 9, 17), ("api", 20, 30)])
def test_a_claim_of_a_program_runs_few_files(followed: Any, face: str, most_above: int, most: int) -> None:
    files = followed(face)["files"]
    assert len(above(files)) <= most_above, above(files)
    assert len(files) <= most, files


def test_claim_renew_and_release_send_two_scripts_at_most(followed: Any) -> None:
    followed("command", "claim", "stripe", "--org", "o")  # by now the server knows the pool
    assert followed("command", "claim", "email", "--org", "o")["scripts"] == ["inspect", "claim"]
    assert followed("command", "renew", "o/email")["scripts"] == ["inspect", "extend"]
    assert followed("command", "release", "o/email")["scripts"] == ["inspect", "end"]


def test_a_port_is_released_by_its_number_with_two_scripts(followed: Any, pool: PoolSpec) -> None:
    followed("command", "claim", "email", "--org", "o", "--port", str(pool.last))
    assert followed("command", "release", str(pool.last))["scripts"] == ["inspect", "end"]
