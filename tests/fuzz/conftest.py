"""The server of the fuzz tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scripted_redis import ScriptedRedis

if TYPE_CHECKING:
    from scripted_redis import ServerProcess


@pytest.fixture(scope="module")
def store(real_server: ServerProcess) -> ScriptedRedis:
    """A real server, empty at the first test of a module."""
    real_server.client.flushall()
    return ScriptedRedis(real_server.client)
