"""The same leases over every kind of Redis, and clear words for those that will not do."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from servers import Server, cluster, sentinel_group, wait_until

from allocator import (
    AsyncPortAllocator,
    ConfigurationError,
    HeldError,
    LeaseState,
    PoolSpec,
    PortAllocator,
    StoreUnavailableError,
    WorkerId,
)
from allocator.database.leader import Leader
from allocator.operations import end, listing
from allocator.operations import hosts as host_operations
from allocator.operations.lead import Remembered, restore
from allocator.protocol.keys import history_key

SPEC = PoolSpec(name="kinds", first=23_000, last=23_043, cooldown_ms=0)


def exercise(url: str, host: str) -> None:
    """Claim, renew, list, wait in vain and release, blocking and with asyncio."""
    with PortAllocator.from_url(url, pool=SPEC.name, host=host) as ports:
        ports.apply_pool(SPEC)
        lease = ports.claim("email", org="org-1")
        assert ports.renew(lease)[0].fence == lease.fence
        assert [one.port for one in ports.leases(host=host)] == [lease.port]
        assert SPEC.name in ports.store.pool_names()
        assert ports.store.wait_for_event(f"alloc:{{{SPEC.name}}}:events", "0-0", 5)
        assert ports.release(lease)

    async def same() -> None:
        async with AsyncPortAllocator.from_url(url, pool=SPEC.name, host=host) as ports:
            async with ports.hold("email", org="org-1") as lease:
                assert [one.port for one in await ports.leases(host=host)] == [lease.port]
            assert await ports.leases(host=host) == []

    asyncio.run(same())


def test_cluster() -> None:
    with cluster() as nodes:
        servers = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2])
        exercise(f"redis+cluster://{servers}", "cluster-host")


def test_a_cluster_whose_nodes_are_all_gone_is_unavailable() -> None:
    with cluster() as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        with PortAllocator.from_url(url, pool=SPEC.name, host="cluster-host", timeout=0.6) as ports:
            ports.apply_pool(SPEC)
            for node in nodes:
                node.crash()
            with pytest.raises(StoreUnavailableError):
                ports.claim("email", org="org-1")


def order(node: Server, *arguments: object) -> list[bytes]:
    return node.client().execute_command(*arguments)


def test_no_script_runs_while_a_cluster_slot_has_moved_in_part() -> None:
    with cluster() as nodes:
        base = f"alloc:{{{SPEC.name}}}"
        slot = order(nodes[0], "CLUSTER", "KEYSLOT", base)
        source, target = nodes[slot // 5462], nodes[(slot // 5462 + 1) % 3]
        names = {node: order(node, "CLUSTER", "MYID").decode() for node in nodes}
        url = f"redis+cluster://127.0.0.1:{source.port}"
        with PortAllocator.from_url(url, pool=SPEC.name, host="moving", timeout=0.6) as ports:
            ports.apply_pool(SPEC)
            lease = ports.claim("email", org="org-1")
            order(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
            order(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])

            def move(*keys: object) -> None:
                order(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)

            move(base, f"{base}:ports:moving")  # all that the scripts declare
            for attempt in (lambda: ports.claim("email", org="org-1"), lambda: ports.release(lease)):
                with pytest.raises(StoreUnavailableError):
                    attempt()
            move(*order(source, "CLUSTER", "GETKEYSINSLOT", slot, 100))
            for node in (target, source, *nodes):
                order(node, "CLUSTER", "SETSLOT", slot, "NODE", names[target])
            assert [one.fence for one in ports.leases()] == [lease.fence]
            assert ports.renew(lease)[0].fence == lease.fence
            assert ports.release(lease)


def test_sentinel_and_a_failover_that_costs_no_lease() -> None:
    with sentinel_group() as (sentinels, primary, replica):
        servers = ",".join(f"127.0.0.1:{one.port}" for one in sentinels)
        url = f"redis+sentinel://{servers}/mymaster"
        exercise(url, "sentinel-host")
        with (
            PortAllocator.from_url(url, pool=SPEC.name, host="sentinel-host") as ports,
            ports.hold("email", org="org-1", ttl=5.0) as held,
        ):
            port = held.port
            primary.process.kill()
            primary.process.wait()
            wait_until(lambda: replica.client().info("replication")["role"] == "master", "no failover")
            wait_until(lambda: held.lease.deadline > ports.session.clock() + 2, "no renewal after the failover")
            assert not held.lost.is_set()
            wait_until(lambda: [one.port for one in ports.leases()] == [port], "the lease is gone")
            assert ports.claim("stripe", org="org-2").port != port


def test_user_and_password(tmp_path: Path) -> None:
    with Server("--requirepass", "s3cret/word") as server:
        server.ready(password="s3cret/word")
        exercise(f"redis://:s3cret%2Fword@127.0.0.1:{server.port}", "auth-host")
        for url in (server.url, f"redis://:wrong@127.0.0.1:{server.port}"):
            with PortAllocator.from_url(url) as ports, pytest.raises(ConfigurationError, match="password") as refused:
                ports.claim("email", org="org-1")
            assert "wrong@" not in str(refused.value)


def documented_rules() -> dict[str, list[str]]:
    """Return the ACL rules that the reference of settings shows, by user."""
    text = (Path(__file__).parents[2] / "docs/reference/settings.md").read_text()
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^ACL SETUSER (\S+) (.*)$", joined, re.MULTILINE)
    return {name: phrase.replace(">PASSWORD", ">word").split() for name, phrase in lines}


def do_what_holders_and_reconcilers_do(url: str, host: str) -> None:
    """Use scripts that `exercise` does not: limits, lines, several ports, drains, the reaper, the lead, restoring."""
    with PortAllocator.from_url(url, pool=SPEC.name, host=host) as ports:
        ports.apply_pool(replace(SPEC, max_per_org=40))
        several = ports.claim_ports("email", ["http", "debug"], org="org-2")
        with pytest.raises(HeldError):
            ports.claim("stripe", org="org-2", port=several["http"].port, wait=0.3)
        assert ports.run(end.fail(ports.session.context, several["http"], "it ended"))
        ports.run(host_operations.drain(SPEC.name, host))
        ports.run(listing.cordon(SPEC.name, host, on=False))
        assert ports.release_all(*several.values()) == 2
        assert ports.decline(ports.claim("slack", org="org-2"))
        ports.run(listing.reap(SPEC.name))
        leader = Leader(ports)
        assert leader.take().fence is not None
        leader.give_up()
        remembered = Remembered(WorkerId("org-3", "stripe"), "elsewhere", SPEC.last, 7)
        assert ports.run(restore(SPEC, [remembered], 60_000)) == [True]
        ports.apply_pool(SPEC)


@pytest.mark.parametrize("name", ["worker", "reader"])
def test_the_documented_acl_rules_are_enough_in_a_cluster(name: str) -> None:
    with cluster() as nodes:
        for node in nodes:
            node.client().execute_command("ACL", "SETUSER", name, *documented_rules()[name], "+cluster|slots")
        with PortAllocator.from_url(f"redis+cluster://127.0.0.1:{nodes[0].port}", pool=SPEC.name) as ports:
            ports.apply_pool(SPEC)
        url = f"redis+cluster://{name}:word@127.0.0.1:{nodes[0].port}"
        if name == "worker":
            exercise(url, "acl-host")
        with PortAllocator.from_url(url, pool=SPEC.name, host="acl-host") as ports:
            assert ports.leases() == []
            assert ports.store.pool_names() == [SPEC.name]


def test_the_documented_acl_rules_are_enough_and_a_reader_sees_no_token() -> None:
    with Server() as server:
        client = server.ready().client()
        for name, arguments in documented_rules().items():
            client.execute_command("ACL", "SETUSER", name, *arguments)
        worker, reader = (f"redis://{name}:word@127.0.0.1:{server.port}" for name in ("worker", "reader"))
        exercise(worker, "acl-host")
        do_what_holders_and_reconcilers_do(worker, "acl-host")
        with (
            PortAllocator.from_url(worker, pool=SPEC.name, host="acl-host") as holding,
            PortAllocator.from_url(reader, pool=SPEC.name, host="acl-host") as reading,
        ):
            lease = holding.claim("email", org="org-1")
            assert [one.port for one in reading.leases()] == [lease.port]
            assert [one.name for one in reading.hosts()] == ["acl-host"]
            assert reading.store.newest_events(f"alloc:{{{SPEC.name}}}:events", 1)
            assert reading.store.newest_events(history_key(SPEC.name), 1)
            assert [one.address for one in reading.endpoints("email", org="org-1")] == []
            with pytest.raises(ConfigurationError, match=r"users\.acl"):
                reading.claim("stripe", org="org-1")
            with pytest.raises(ConfigurationError, match=r"users\.acl"):
                reading.release(lease)
            assert [one.port for one in holding.leases()] == [lease.port]
        with (
            server.client(username="reader", password="word") as raw,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            raw.hgetall(f"alloc:{{{SPEC.name}}}:tokens:acl-host")


def test_a_server_that_evicts_is_refused() -> None:
    with Server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        server.ready()
        with PortAllocator.from_url(server.url) as ports, pytest.raises(ConfigurationError, match="noeviction"):
            ports.claim("email", org="org-1")


def test_a_replica_is_refused() -> None:
    with Server() as primary, Server("--replicaof", f"127.0.0.1 {primary.port}") as replica:
        primary.ready()
        replica.ready()
        with PortAllocator.from_url(replica.url) as ports, pytest.raises(ConfigurationError, match="primary"):
            ports.claim("email", org="org-1")


@pytest.fixture
def redis_proper() -> str:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed; its package of the distribution has it")
    return binary


def test_redis_proper(redis_proper: str) -> None:
    with Server(binary=redis_proper) as server:
        exercise(server.ready().url, "redis-host")


def test_tls(redis_proper: str, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    arguments = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    arguments += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    subprocess.run(arguments, check=True, capture_output=True)
    from servers import free_port

    tls_port = free_port()
    settings = ["--port", "0", "--tls-port", str(tls_port), "--tls-auth-clients", "no"]
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    with Server(*settings, *files, binary=redis_proper) as server:
        server.port = tls_port
        server.ready(ssl=True, ssl_ca_certs=str(certificate))
        exercise(f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={certificate}", "tls-host")
        with (
            PortAllocator.from_url(f"rediss://127.0.0.1:{tls_port}") as ports,
            pytest.raises(ConfigurationError, match="TLS"),
        ):
            ports.claim("email", org="org-1")


def test_holders_renew_and_give_back_while_redis_has_no_memory_left() -> None:
    with Server() as server:
        server.ready()
        with PortAllocator.from_url(server.url) as ports:
            kept, released, declined = (ports.claim("email", org="org-1", instance=number) for number in range(3))
            server.client().config_set("maxmemory", "1")
            assert ports.renew(replace(kept, state=LeaseState.READY), rewrite=True)[0].state is LeaseState.READY
            assert ports.release(released)
            assert ports.decline(declined)
            assert [lease.port for lease in ports.leases()] == [kept.port]
            with pytest.raises(StoreUnavailableError, match="no memory left"):
                ports.claim("email", org="org-2")
