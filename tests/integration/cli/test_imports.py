"""The promise: what a command loads is what it needs, for loading takes most of its time."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

import allocator

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {
    "redis",
    "asyncio",
    "tenacity",
    "logging",
    "importlib.metadata",
    "pydantic",
    "email",
    "httpx",
    "sqlalchemy",
    "hashlib",
    "dataclasses",
}
"""What takes 10 to 200 ms to load, and no command needs that only claims, renews or gives back."""

HELP_NEEDS = {"dataclasses"}
"""Typer loads it to write help."""

RUN_NEEDS = {"logging"}
"""`run` writes a log."""

PROGRAM = """
import os, sys
from pathlib import Path
from allocator.__main__ import main
sys.argv[0] = "allocator"
os._exit = sys.exit  # so that something can be said of the process before it ends
status = None
try:
    main()
except SystemExit as ended:
    status = ended.code
Path(%r).write_text("\\n".join(sorted(sys.modules)))
sys.exit(status)
"""


def loaded_by(tmp_path: Path, url: str, pool: str, *arguments: str) -> set[str]:
    """Return the modules that a command has loaded when it ends, well."""
    listing = tmp_path / "modules"
    environment = {
        "ALLOCATOR_REDIS_URL": url, "ALLOCATOR_POOL": pool, "ALLOCATOR_HOST": "web-1", "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % str(listing), *arguments],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(listing.read_text().split())


def heavy(modules: set[str]) -> set[str]:
    return {name for name in HEAVY if name in modules}


def test_the_version_and_the_help_load_next_to_nothing(tmp_path, redis_url, pool) -> None:
    shown = loaded_by(tmp_path, redis_url, pool.name, "--version")
    assert not heavy(shown)
    assert "typer" not in shown
    assert heavy(loaded_by(tmp_path, redis_url, pool.name, "--help")) <= HELP_NEEDS


def test_claim_renew_and_release_load_what_they_need(tmp_path, redis_url, pool) -> None:
    arguments = ("email", "--org", "org-1")
    claimed = loaded_by(tmp_path, redis_url, pool.name, "claim", *arguments)
    assert not heavy(claimed)
    assert not {f"allocator.operations.{name}" for name in ("apply", "hosts", "listing", "resolve")} & claimed
    assert not heavy(loaded_by(tmp_path, redis_url, pool.name, "renew", str(pool.first)))
    assert not heavy(loaded_by(tmp_path, redis_url, pool.name, "release", str(pool.first)))


def test_a_settings_file_makes_a_claim_load_no_more(tmp_path, redis_url, pool) -> None:
    settings = '[database]\ntable = "workers"\n[database.plugin]\ntable = "plugins"\n'
    (tmp_path / "allocator.toml").write_text(settings)
    assert not heavy(loaded_by(tmp_path, redis_url, pool.name, "claim", "email", "--org", "org-1"))


def test_an_upgrade_of_the_table_loads_no_highlighter_and_no_second_checker_of_input(tmp_path, redis_url, pool) -> None:
    url = f"sqlite:///{tmp_path / 'workers.db'}"
    loaded = loaded_by(tmp_path, redis_url, pool.name, "db", "upgrade", "--database-url", url)
    assert "alembic" in loaded
    assert not {"pygments", "pydantic", "redis", "httpx", "rich"} & loaded


def test_run_loads_what_it_needs(tmp_path, redis_url, pool) -> None:
    arguments = ("run", "email", "--org", "org-1", "--restart", "never", "--", "true")
    loaded = loaded_by(tmp_path, redis_url, pool.name, *arguments)
    assert heavy(loaded) <= RUN_NEEDS
    assert not {"typer", "inspect"} & loaded, "a child reads the command line"


def test_the_version_is_that_of_the_package() -> None:
    assert allocator.__version__ == version("portlease")
    with pytest.raises(AttributeError):
        allocator.nothing  # noqa: B018  # the attribute is asked for
