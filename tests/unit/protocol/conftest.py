"""Every test of the protocol runs on fakeredis and on a real server; a test that needs neither runs once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import fakeredis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripted_redis import ScriptedRedis, ServerProcess, valkey_binary


@pytest.fixture(scope="session")
def real_server() -> Iterator[ServerProcess]:
    binary = valkey_binary()
    if binary is None:
        pytest.skip("no Valkey or Redis server is installed here")
    server = ServerProcess(binary)
    yield server
    server.close()


@pytest.fixture(params=["fakeredis", "valkey"])
def store(request: pytest.FixtureRequest) -> ScriptedRedis:
    if request.param == "fakeredis":
        return ScriptedRedis(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
    server = request.getfixturevalue("real_server")
    server.client.flushall()
    return ScriptedRedis(server.client)
