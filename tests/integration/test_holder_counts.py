"""What only a holder knows is counted and shown: renewals without an answer, doubt, losses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
from prometheus_client import CollectorRegistry
from servers import Server, free_port
from supervised import eventually

from allocator import HolderMetrics, PortAllocator

if TYPE_CHECKING:
    from supervised import Fleet

    from allocator import PoolSpec


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"allocator_holder_{name}", {"pool": "sdk-v2", **labels})


def test_silence_makes_doubt_and_an_answer_ends_it() -> None:
    registry = CollectorRegistry()
    with Server("--appendonly", "no") as server:
        server.ready()
        with PortAllocator.from_url(server.url, host="web-1", timeout=0.3) as ports:
            registry.register(HolderMetrics(ports))
            ports.apply_pool(replace(ports.pool(), ttl_min_ms=100))
            with ports.hold("email", org="org-1", ttl=0.3) as held:
                assert sample(registry, "held_leases") == 1
                eventually(lambda: sample(registry, "renewals_total", outcome="renewed"))
                server.process.send_signal(19)
                eventually(lambda: sample(registry, "doubtful_leases") == 1)
                assert sample(registry, "doubts_total") == 1
                assert sample(registry, "renewals_total", outcome="unanswered") > 0
                server.process.send_signal(18)
                eventually(lambda: sample(registry, "doubtful_leases") == 0)
                assert not held.lost.is_set()
                ports.release(held.lease)
                eventually(held.lost.is_set)
            assert sample(registry, "renewals_total", outcome="lost") == 1
            assert sample(registry, "held_leases") == 0


def test_leases_of_two_pools_are_counted_apart(ports: PortAllocator, pool: PoolSpec, redis_url: str) -> None:
    ports.apply_pool(other := replace(pool, name=f"{pool.name}-other", first=pool.first + 5))
    registry = CollectorRegistry()
    registry.register(HolderMetrics(ports))
    with PortAllocator.from_url(redis_url, pool=other.name, host="web-1") as elsewhere:
        elsewhere.apply_pool(other)
        held = [
            ports.start_heartbeats(ports.claim("email", org="org-1")),
            ports.start_heartbeats(elsewhere.claim("stripe", org="org-1")),
        ]

        def held_in(name: str) -> float | None:
            return registry.get_sample_value("allocator_holder_held_leases", {"pool": name})

        assert (held_in(pool.name), held_in(other.name)) == (1, 1)
        ports.end_held(*held)
        assert held_in(pool.name) == 0


def test_a_supervisor_serves_the_counts_of_its_leases(fleet: Fleet) -> None:
    port = free_port()
    fleet.run("--metrics-listen", f"127.0.0.1:{port}", "--ttl", "1s")
    fleet.lease()

    def renewed() -> bool:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert f'allocator_holder_held_leases{{pool="{fleet.pool.name}"}} 1.0' in text
        return f'allocator_holder_renewals_total{{outcome="renewed",pool="{fleet.pool.name}"}} 0.0' not in text

    eventually(renewed)


def test_an_agent_shows_the_counts_of_the_leases_that_it_looks_after(fleet: Fleet) -> None:
    worker = fleet.spawn("events", "--follow")  # any process that stays
    fleet.spawn("claim", "email", "--org", "org-1", "--pid", str(worker.pid), "--ttl", "1s").wait()
    port = free_port()
    agent = fleet.spawn("agent", "--metrics-listen", f"127.0.0.1:{port}")
    assert "looking after 1 leases" in next(agent.stderr)
    path = fleet.state / "allocator/agent.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=30) as http:
        eventually(lambda: 'outcome="renewed"' in (text := http.get("/metrics").text) and "held_leases" in text)
        text = http.get("/metrics").text
    alone = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert f'allocator_holder_held_leases{{pool="{fleet.pool.name}"}} 1.0' in alone
    assert f'allocator_holder_held_leases{{pool="{fleet.pool.name}"}} 1.0' in text
