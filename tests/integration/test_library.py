"""What a program gets from `PortAllocator` and `AsyncPortAllocator`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from servers import wait_until

from allocator import (
    AsyncPortAllocator,
    CordonedError,
    ExhaustedError,
    HeldError,
    HostConflictError,
    InvalidInputError,
    LeaseLostError,
    LeaseState,
    LimitError,
    PoolMissingError,
    PortAllocator,
)
from allocator.kernel.identity import boot_id, identify, namespaces
from allocator.operations import listing

if TYPE_CHECKING:
    from allocator import PoolSpec
    from allocator.operations.steps import Operation


def test_hold_keeps_the_lease_beyond_its_ttl_and_releases_it_at_the_end(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1", ttl=0.4) as lease:
        threading.Event().wait(1.2)
        assert [one.port for one in ports.leases()] == [lease.port]
        assert not lease.lost.is_set()
    assert ports.leases() == []


def test_async_hold_does_the_same(redis_url: str, pool: PoolSpec) -> None:
    async def scenario() -> None:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as ports:
            async with ports.hold("email", org="org-1", ttl=0.4) as lease:
                await asyncio.sleep(1.2)
                assert [one.port for one in await ports.leases()] == [lease.port]
            assert await ports.leases() == []

    asyncio.run(scenario())


def test_a_claim_for_a_process_states_which_one_and_a_dead_one_is_refused(ports: PortAllocator) -> None:
    lease = ports.claim("email", org="org-1", pid=os.getpid())
    me = identify(os.getpid())
    assert (lease.pid, lease.pid_started, lease.boot, lease.namespaces) == (
        me.pid,
        me.start_time,
        boot_id(),
        namespaces(),
    )
    with pytest.raises(InvalidInputError, match="4194305 is not the pid of a living process"):
        ports.claim("stripe", org="org-1", pid=4_194_305)


def test_a_restart_and_an_error_of_the_worker_are_seen_by_readers(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1") as lease:
        ports.update(lease, restarts=2, last_error="it broke\nbadly")
        while ports.leases()[0].restarts != 2:
            threading.Event().wait(0.02)
        assert ports.leases()[0].last_error == "it broke badly"
        ports.renew(lease.lease)
        assert ports.leases()[0].restarts == 2


def test_a_state_that_is_set_is_seen_by_readers(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1") as lease:
        ports.update(lease, state=LeaseState.READY, labels={"version": "3"})
        while ports.leases()[0].state is not LeaseState.READY:
            threading.Event().wait(0.02)
        assert ports.leases()[0].labels == {"version": "3"}
        ports.update(lease, state=LeaseState.DRAINING)
        with pytest.raises(ValueError, match="draining to ready"):
            ports.update(lease, state=LeaseState.READY)


def test_a_lease_that_somebody_ended_is_lost_and_its_holder_is_notified(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1", ttl=0.4) as lease:
        ports.release(lease.lease)
        assert lease.lost.wait(5)
        assert isinstance(lease.error, LeaseLostError)


def test_wait_in_the_library_is_woken_by_a_release_in_threads_and_in_asyncio(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    leases = [ports.claim("email", org=f"org-{number}") for number in range(pool.size)]
    with pytest.raises(ExhaustedError) as full:
        ports.claim("email", org="late")
    assert 25 < full.value.retry_after <= 30.2

    threading.Timer(0.3, ports.release, [leases[3]]).start()
    assert ports.claim("email", org="late", wait=20).port == leases[3].port

    async def late() -> int:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as waiting:
            return (await waiting.claim("email", org="later", wait=20)).port

    threading.Timer(0.3, ports.release, [leases[5]]).start()
    assert asyncio.run(late()) == leases[5].port


def test_a_wall_clock_a_year_off_changes_nothing(ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 365 * 86_400)
    lease = ports.claim("email", org="org-1")
    assert abs(lease.expires_at - real() - 30) < 5
    (renewed,) = ports.renew(lease)
    assert renewed.fence == lease.fence
    assert ports.release(renewed)


def test_a_stale_holder_can_neither_renew_nor_release_the_newer_lease(ports: PortAllocator, pool: PoolSpec) -> None:
    stale = ports.claim("email", org="org-1", port=pool.first)
    ports.release(stale)
    newer = ports.claim("stripe", org="org-2", port=pool.first)
    with pytest.raises(LeaseLostError):
        ports.renew(stale)
    with pytest.raises(HeldError):
        ports.release(stale)
    assert [one.fence for one in ports.leases()] == [newer.fence]


def test_another_machine_under_the_same_name_is_refused_while_leases_live(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    lease = ports.claim("email", org="org-1")
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as other:
        other.session.context.identity = "another-machine b n"
        with pytest.raises(HostConflictError, match="--host"):
            other.claim("email", org="org-2")
        ports.release(lease)
        assert other.claim("email", org="org-2").port


def test_a_cordoned_host_gives_out_no_new_ports(ports: PortAllocator, pool: PoolSpec) -> None:
    kept = ports.claim("email", org="org-1")
    assert ports.run(listing.cordon(pool.name, "web-1", on=True))
    with pytest.raises(CordonedError, match="uncordon"):
        ports.claim("email", org="org-2")
    assert ports.renew(kept)
    assert ports.run(listing.cordon(pool.name, "web-1", on=False))
    assert ports.claim("email", org="org-2").port


def test_a_pool_that_nobody_defined_is_a_clear_error(redis_url: str) -> None:
    with (
        PortAllocator.from_url(redis_url, pool="undefined", host="web-1") as ports,
        pytest.raises(PoolMissingError, match="pool apply"),
    ):
        ports.claim("email", org="org-1")


def test_a_shrunken_pool_revokes_nothing_and_retires_what_comes_back(ports: PortAllocator, pool: PoolSpec) -> None:
    lease = ports.claim("email", org="org-1", port=pool.last)
    ports.apply_pool(replace(pool, last=pool.last - 4))
    with PortAllocator(ports.store, ports.session) as same:
        assert same.renew(lease)
        assert same.release(lease)
        same.session.context.rules.clear()
        with pytest.raises(InvalidInputError, match="outside pool"):
            same.claim("email", org="org-1", port=pool.last)
        assert same.claim("email", org="org-1").port != pool.last


def test_the_largest_pool_can_be_claimed_from_both_ends(redis_url: str, pool: PoolSpec) -> None:
    whole = replace(pool, name=f"{pool.name}-all", first=1, last=65_535)
    with PortAllocator.from_url(redis_url, pool=whole.name, host="web-1") as ports:
        assert ports.apply_pool(whole) == "created"
        assert ports.apply_pool(whole) == "unchanged"
        assert ports.claim("email", org="org-1", port=65_535).port == 65_535
        with pytest.raises(InvalidInputError):
            ports.claim("email", org="org-1", port=65_536)


def test_a_forked_process_keeps_its_own_leases_alive_and_leaves_its_parents(ports: PortAllocator) -> None:
    with ports.hold("email", org="master", ttl=0.5) as held:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                with ports.hold("stripe", org="kid", ttl=0.5) as own:
                    threading.Event().wait(1.5)
                    alive = [one.fence for one in ports.leases(org="kid")] == [own.fence]
                ports.close()
                status = 0 if alive else 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [one.fence for one in ports.leases()] == [held.fence]
        assert not held.lost.is_set()


def test_what_is_held_after_a_close_is_kept_alive_too(redis_url: str, pool: PoolSpec) -> None:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as ports:
        ports.start_heartbeats(ports.claim("email", org="org-1"))
        ports.close()
        with ports.hold("email", org="org-1", ttl=0.4) as lease:
            threading.Event().wait(1.2)
            assert [one.fence for one in ports.leases()] == [lease.fence]

    async def scenario() -> None:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as others:
            others.start_heartbeats(await others.claim("email", org="org-1"))
            await others.close()
            async with others.hold("email", org="org-1", ttl=0.4) as lease:
                await asyncio.sleep(1.2)
                assert [one.fence for one in await others.leases()] == [lease.fence]

    asyncio.run(scenario())


def test_what_one_lease_cannot_state_costs_no_other_lease_its_port(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1", ttl=0.5) as held, ports.hold("stripe", org="org-1", ttl=0.5) as other:
        for arguments in ({"restarts": "many"}, {"pid": 1.5}, {"last_error": 7}, {"labels": {"a": "\n"}}):
            with pytest.raises(InvalidInputError):
                ports.update(held, **arguments)
        threading.Event().wait(1.2)
        assert not held.lost.is_set()
        assert not other.lost.is_set()
        assert len(ports.leases()) == 2


def test_a_heartbeat_that_fails_as_nobody_expected_is_tried_again(
    ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failed = ports.run, threading.Event()

    def fail_once(operation: Operation[Any]) -> Any:
        if threading.current_thread().name == "allocator-heartbeats" and not failed.is_set():
            failed.set()
            raise RuntimeError("nobody expected this")
        return run(operation)

    monkeypatch.setattr(ports._heartbeats, "_run", fail_once)
    with ports.hold("email", org="org-1", ttl=0.6) as held:
        assert failed.wait(20)
        threading.Event().wait(1.2)
        assert not held.lost.is_set()
        assert [one.fence for one in ports.leases()] == [held.fence]


@pytest.mark.parametrize("name", ["web-1 ", "a:b", "x}y", "", "*"])
def test_another_host_has_a_valid_name(ports: PortAllocator, redis_url: str, pool: PoolSpec, name: str) -> None:
    with pytest.raises(InvalidInputError):
        ports.for_host(name)

    async def scenario() -> None:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as others:
            with pytest.raises(InvalidInputError):
                await others.for_host(name)

    asyncio.run(scenario())


def test_a_limit_is_not_taken_for_a_full_host(ports: PortAllocator, pool: PoolSpec) -> None:
    ports.apply_pool(replace(pool, max_per_org=1))
    ports.register()
    ports.claim_anywhere("email", org="org-1")
    with pytest.raises(LimitError, match="max_per_org"):
        ports.claim_anywhere("stripe", org="org-1")


def test_errors_go_from_process_to_process() -> None:
    error = LimitError("full", kind="org", holders=("a/b#0",), host="web-1", retry_after=1.5)
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.kind, copied.holders, copied.retry_after) == ("full", "org", ("a/b#0",), 1.5)


def test_a_held_lease_is_ready_at_once_for_a_worker_that_listens_already(redis_url: str, pool: PoolSpec) -> None:
    def ready(plugin: str) -> list[int]:
        with PortAllocator.from_url(redis_url, pool=pool.name) as others:
            return [one.port for one in others.endpoints(plugin, org="org-1")]

    async def hold() -> None:
        async with (
            AsyncPortAllocator.from_url(redis_url, pool=pool.name) as ports,
            ports.hold("slack", org="org-1", ready=True) as lease,
        ):
            await asyncio.to_thread(wait_until, lambda: ready("slack") == [lease.port], "it does not become ready")

    with PortAllocator.from_url(redis_url, pool=pool.name) as ports:
        with ports.hold("email", org="org-1", ready=True) as lease:
            wait_until(lambda: ready("email") == [lease.port], "it does not become ready")
        with pytest.raises(InvalidInputError, match="ready"), ports.hold("email", org="org-1", ready="yes"):
            pass
        assert ports.leases() == []
    asyncio.run(hold())


def test_the_old_name_of_contiguous_still_works(redis_url: str, pool: PoolSpec) -> None:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as ports:
        first, second = ports.claim_ports("email", ["http", "debug"], org="org-1", adjacent=True).values()
        assert second.port == first.port + 1
