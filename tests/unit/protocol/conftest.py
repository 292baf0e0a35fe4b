"""Every test of the protocol runs on fakeredis and on a real server; a test that needs neither runs once."""

from __future__ import annotations

import fakeredis
import pytest
from scripted_redis import ScriptedRedis


@pytest.fixture(params=["fakeredis", "valkey"])
def store(request: pytest.FixtureRequest) -> ScriptedRedis:
    if request.param == "fakeredis":
        return ScriptedRedis(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
    server = request.getfixturevalue("real_server")
    server.client.flushall()
    return ScriptedRedis(server.client)
