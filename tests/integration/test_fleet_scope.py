"""A port that is unique over all hosts: kept apart by a grace after Redis was replaced, and by a replica's word."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from servers import Server, cluster, wait_until

from allocator import (
    AsyncPortAllocator,
    LeaseLostError,
    PoolSpec,
    PortAllocator,
    RecoveringError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = PoolSpec(
    name="shared", first=14_700, last=14_710, scope="fleet", ttl_ms=4_000, ttl_min_ms=100, grace_ms=0, cooldown_ms=0
)


def allocator(url: str, host: str) -> PortAllocator:
    return PortAllocator.from_url(url, pool="shared", host=host, timeout=2)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        yield one.ready()


def test_a_port_is_unique_over_all_hosts(server: Server) -> None:
    with allocator(server.url, "web-1") as one, allocator(server.url, "web-2") as other:
        one.apply_pool(RULES)
        assert len({hosts.claim("email", org="o", instance=n).port for n, hosts in enumerate([one, other] * 5)}) == 10


def test_after_redis_lost_everything_no_port_is_granted_for_one_ttl(server: Server) -> None:
    with allocator(server.url, "web-1") as one, allocator(server.url, "web-2") as other:
        one.apply_pool(RULES)
        held = one.claim("email", org="o")
        server.client().flushall()
        with pytest.raises(RecoveringError, match="pool shared grants no port for another") as recovering:
            one.claim("stripe", org="o")
        assert 0 < recovering.value.retry_after <= 4
        (again,) = one.renew(held)
        assert again.fence > held.fence
        late = other.claim("stripe", org="o", wait=30)
        assert late.port != held.port


def test_a_server_that_was_replaced_grants_nothing_until_every_known_host_has_renewed(server: Server) -> None:
    with allocator(server.url, "web-1") as one, allocator(server.url, "web-2") as other:
        one.apply_pool(RULES)
        held = one.claim("email", org="o", ttl=60)
        server.client().hset("alloc:{shared}", "recovery", "abc 1 2")  # as it is on a replica that took over
        with pytest.raises(RecoveringError):
            other.claim("stripe", org="o")
        assert server.client().smembers("alloc:{shared}:unreported") == {b"web-1"}
        one.renew(held)
        assert server.client().exists("alloc:{shared}:unreported") == 0
        with pytest.raises(RecoveringError):  # 0.6 TTL passes all the same
            other.claim("stripe", org="o")
        assert other.claim("stripe", org="o", wait=30).port != held.port


def test_a_new_pool_needs_no_grace(server: Server) -> None:
    with allocator(server.url, "web-1") as one:
        one.apply_pool(RULES)
        assert one.claim("email", org="o").port
        assert one.claim("email", org="o", instance=1).port


def test_a_holder_that_cannot_reach_redis_stops_in_time(server: Server) -> None:
    with allocator(server.url, "web-1") as one:
        one.apply_pool(RULES)
        with one.hold("email", org="o", ttl=1) as lease:
            server.process.send_signal(19)
            assert lease.lost.wait(20)
            assert isinstance(lease.error, LeaseLostError)
            server.process.send_signal(18)


def test_a_claim_that_no_replica_confirms_is_given_back(server: Server) -> None:
    durable = PoolSpec(name="durable", first=14_720, last=14_729, durability="replica", cooldown_ms=0)
    with PortAllocator.from_url(server.url, pool="durable", host="web-1", timeout=2) as ports:
        ports.apply_pool(durable)
        with pytest.raises(StoreUnavailableError, match="no replica confirmed"):
            ports.claim("email", org="o")
        with pytest.raises(StoreUnavailableError, match="no replica confirmed"):
            ports.claim_ports("email", ["http", "debug"], org="o")
        assert ports.leases() == []
        with Server("--replicaof", f"127.0.0.1 {server.port}") as replica:
            wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", "no replica")
            lease = ports.claim("email", org="o")
            assert replica.client().exists(f"alloc:{{durable}}:lease:web-1:{lease.port}")
            server.client().script_flush()
            assert ports.claim("email", org="o", token=lease.token).port == lease.port


def test_the_async_allocator_waits_for_the_replica_as_well(server: Server) -> None:
    async def scenario() -> None:
        async with AsyncPortAllocator.from_url(server.url, pool="durable", host="web-1", timeout=1) as ports:
            await ports.apply_pool(PoolSpec(name="durable", first=14_720, last=14_729, durability="replica"))
            with pytest.raises(StoreUnavailableError, match="no replica confirmed"):
                await ports.claim("email", org="o")

    asyncio.run(scenario())


def test_on_a_cluster_both_allocators_wait_for_the_replica_of_the_node_that_has_the_pool() -> None:
    durable = PoolSpec(name="durable", first=14_720, last=14_729, durability="replica", cooldown_ms=0)
    with cluster() as nodes, contextlib.ExitStack() as stack:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        owner = next(node for node in nodes if node.client().cluster("KEYSLOT", "alloc:{durable}") in slots_of(node))

        async def claim(number: int) -> int:
            async with AsyncPortAllocator.from_url(url, pool="durable", host="web-1", timeout=2) as ports:
                return (await ports.claim("email", org="o", instance=number)).port

        with PortAllocator.from_url(url, pool="durable", host="web-1", timeout=2) as ports:
            ports.apply_pool(durable)
            for attempt in (lambda: ports.claim("email", org="o").port, lambda: asyncio.run(claim(1))):
                with pytest.raises(StoreUnavailableError, match="no replica confirmed"):
                    attempt()
            assert ports.leases() == []
            replica = stack.enter_context(Server("--cluster-enabled", "yes")).ready()
            follow(replica, owner)
            for attempt in (lambda: ports.claim("email", org="o").port, lambda: asyncio.run(claim(1))):
                client = replica.client()
                client.execute_command("READONLY")
                assert client.exists(f"alloc:{{durable}}:lease:web-1:{attempt()}")


def slots_of(node: Server) -> range:
    mine = node.client().execute_command("CLUSTER", "MYID").decode()
    for first, last, *owners in node.client().execute_command("CLUSTER", "SLOTS"):
        if owners[0][2].decode() == mine:
            return range(first, last + 1)
    raise AssertionError("no slots")


def follow(replica: Server, owner: Server) -> None:
    """Make a node of the Cluster the replica of another."""
    client = replica.client()
    client.execute_command("CLUSTER", "MEET", "127.0.0.1", owner.port)
    owners_id = owner.client().execute_command("CLUSTER", "MYID").decode()

    def follows() -> bool:
        client.execute_command("CLUSTER", "REPLICATE", owners_id)
        return True

    wait_until(follows, "the replica does not know its primary")
    wait_until(lambda: client.info("replication")["master_link_status"] == "up", "no replica")
