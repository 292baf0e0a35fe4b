"""A pool whose ports are unique over all hosts, as the API tells of it: one set of ports, whoever has them."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from supervised import eventually

from allocator import PortAllocator

if TYPE_CHECKING:
    import httpx
    from api_server import Worker

    from allocator import PoolSpec


@pytest.fixture
def pool(redis_url: str, pool: PoolSpec) -> PoolSpec:
    """Four ports for the whole fleet."""
    fleet = replace(pool, name=f"{pool.name}-fleet", last=pool.first + 3, scope="fleet")
    with PortAllocator.from_url(redis_url, pool=fleet.name, host="web-1") as ports:
        ports.apply_pool(fleet)
    return fleet


def test_each_port_is_counted_once(worker: Worker, http: httpx.Client, pool: PoolSpec) -> None:
    for number in range(3):
        worker.claim(instance=number, host=f"web-{number % 2 + 1}")

    def values(name: str) -> dict[str, float]:
        text = http.get("/metrics").text
        found = re.findall(rf'^{name}{{host="([^"]+)",pool="{pool.name}"[^}}]*}} (\S+)$', text, re.MULTILINE)
        return {host: sum(float(value) for one, value in found if one == host) for host, _ in found}

    assert values("allocator_leases") == {"web-1": 2, "web-2": 1}
    assert values("allocator_pool_ports") == {"*": 4}
    assert values("allocator_pool_free_ports") == {"*": 1}
    before = sum(values("allocator_pool_stranger_ports").values())
    with socket.create_server(("127.0.0.1", pool.first + 3)):
        assert sum(values("allocator_pool_stranger_ports").values()) == before + 1
    hosts = {one["name"]: (one["leases"], one["free"]) for one in http.get("/v1/hosts").json()}
    assert hosts == {"web-1": (2, 1), "web-2": (1, 1)}
    assert http.get("/v1/hosts/web-2").json()["free"] == 1
    (one,) = eventually(lambda: http.get("/v1/samples").json(), "no sample was taken")[-1:]
    assert (one["size"], one["leased"]) in {(4, 0), (4, 3)}
