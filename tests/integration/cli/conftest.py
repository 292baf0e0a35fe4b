"""The command as a person runs it: a process of its own, with a state directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from allocator import PoolSpec

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Allocator:
    """Runs `allocator` and returns what it did; nothing that a user can cause may show a traceback."""

    state: Path
    variables: dict[str, str]

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        base = {"XDG_STATE_HOME": str(self.state), "XDG_CONFIG_HOME": str(self.state / "config"), "COLUMNS": "200"}
        return kept | base | {"PYTHONPATH": str(ROOT)} | self.variables | variables

    def __call__(self, *arguments: str, input: str | None = None, **variables: str) -> Done:  # noqa: A002  # as subprocess
        done = subprocess.run(
            [sys.executable, "-m", "allocator", *arguments],
            env=self.environment(**variables),
            cwd=self.state,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            input=input,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def allocator(redis_url: str, pool: PoolSpec, tmp_path: Path) -> Allocator:
    state = tmp_path / "state"
    state.mkdir()
    return Allocator(state, {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name, "ALLOCATOR_HOST": "web-1"})
