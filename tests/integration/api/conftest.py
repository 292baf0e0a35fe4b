"""The API as a caller meets it: a real server on a loopback port, over a real Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from api_server import JSON, Worker, served

from allocator import AsyncPortAllocator
from allocator.api.application import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import PoolSpec


@pytest.fixture
def url(redis_url: str, pool: PoolSpec) -> Iterator[str]:
    """An API whose own host is web-1."""
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator)) as found:
        yield found


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20, headers=JSON) as client:
        yield client


@pytest.fixture
def worker(http: httpx.Client) -> Worker:
    return Worker(http)
