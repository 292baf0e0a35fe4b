"""What `GET /v1/drift` says of a database that is away: where it is, and no password, whoever reads it."""

from __future__ import annotations

import httpx
import pytest
from api_server import served

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api.application import create_app
from allocator.api.drift import DriftView
from allocator.database.connection import Database
from allocator.model.tables import TableNames

URLS = (
    "postgresql://me:S3CRET@127.0.0.1:1/workers",
    "postgresql://me@127.0.0.1:1/workers?password=S3CRET",
    "postgresql://me@127.0.0.1:1/workers?sslpassword=S3CRET",
)


@pytest.mark.parametrize("database_url", URLS)
def test_a_database_that_is_away_shows_no_password(redis_url: str, pool, caplog, database_url: str) -> None:
    ports = PortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    view = DriftView(ports, Database.open(database_url), TableNames())
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, drift_view=view)) as url:
        answer = httpx.get(f"{url}/v1/drift", timeout=30)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:portlease:problem:database-unavailable")
    assert "127.0.0.1:1" in answer.json()["detail"]
    assert "S3CRET" not in answer.text
    assert "S3CRET" not in caplog.text
