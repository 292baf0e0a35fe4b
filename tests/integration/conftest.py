"""Supervisors and agents of one test: in one pool, on one host, ended with the test."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from supervised import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from allocator import PoolSpec, PortAllocator


@pytest.fixture
def fleet(redis_url: str, pool: PoolSpec, ports: PortAllocator, tmp_path: Path) -> Iterator[Fleet]:
    one = Fleet(redis_url, pool, ports, tmp_path)
    try:
        yield one
    finally:
        one.clean()


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    """A process that leases can be tied to."""
    with subprocess.Popen(["sleep", "600"]) as one:
        yield one
        one.kill()
