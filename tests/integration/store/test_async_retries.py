"""A server that is away for a moment costs an async caller time, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from servers import Server, wait_until

from allocator import AsyncPortAllocator, StoreUnavailableError


def test_a_call_is_made_again_until_the_server_is_there() -> None:
    async def claim(url: str, server: Server) -> int:
        async with AsyncPortAllocator.from_url(url, host="web-1", timeout=10) as ports:
            await ports.claim("email", org="org-1")
            server.process.kill()
            server.process.wait()
            claiming = asyncio.create_task(ports.claim("stripe", org="org-1"))
            await asyncio.sleep(0)
            with Server("--port", str(server.port)) as back:
                back.port = server.port
                await asyncio.to_thread(wait_until, lambda: back.client().ping(), "no server")
                return (await claiming).port

    with Server() as server:
        server.ready()
        assert asyncio.run(claim(server.url, server)) == 5557


def test_a_server_that_stays_away_is_a_clear_error(tmp_path) -> None:
    async def claim() -> None:
        async with AsyncPortAllocator.from_url(f"unix://{tmp_path}/none.sock", host="web-1", timeout=0.2) as ports:
            await ports.claim("email", org="org-1")

    with pytest.raises(StoreUnavailableError, match="did not answer within 200 ms"):
        asyncio.run(claim())
