"""Which addresses stay: what an event ended goes at once, what Redis merely lost stays for one TTL of its lease."""

from __future__ import annotations

import pytest

from allocator import Lease, LeaseState, WorkerId
from allocator.discovery.memory import AddressMemory
from allocator.model.endpoints import Sighting

EMAIL = ("email", "o")
TTL_S = 30.0


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def memory(clock):
    return AddressMemory(clock=clock)


def sighting(port, *, fence=10, host="web-1", plugin="email", instance=None, address="10.0.0.5", **arguments):
    left_s = arguments.pop("left_s", 20.0)
    rest = {"pool": "p", "state": LeaseState.READY, "ttl_ms": int(TTL_S * 1_000), "granted_at": 0.0} | arguments
    worker = WorkerId("o", plugin, port if instance is None else instance)
    lease = Lease(host=host, port=port, worker=worker, fence=fence, expires_at=left_s, **rest)
    return Sighting.of(lease, address, 0.0)


def event(kind, port, *, fence=10, host="web-1", plugin="email", instance=None, **more):
    worker = f"o/{plugin}#{port if instance is None else instance}"
    return {"type": kind, "host": host, "port": str(port), "worker": worker, "fence": str(fence)} | more


def ports(memory, service=EMAIL):
    return [one.port for one in memory.endpoints(service)]


def test_what_redis_lost_stays_for_one_ttl(memory, clock):
    memory.see([EMAIL], [sighting(1), sighting(2)])
    memory.see([EMAIL], [])
    clock.now += TTL_S - 0.1
    memory.see([EMAIL], [])
    assert ports(memory) == [1, 2]
    assert memory.overdue() == set()
    clock.now += 0.2
    assert memory.overdue() == {EMAIL}
    memory.see([EMAIL], [])
    assert ports(memory) == []


def test_a_holder_that_renews_keeps_its_address(memory, clock):
    memory.see([EMAIL], [sighting(1), sighting(2)])
    memory.see([EMAIL], [])
    clock.now += 10
    memory.see([EMAIL], [sighting(1, fence=20)])
    clock.now += 25
    memory.see([EMAIL], [sighting(1, fence=20)])
    assert ports(memory) == [1]


@pytest.mark.parametrize("kind", ["released", "declined", "expired", "superseded", "forced"])
def test_what_an_event_ended_goes_at_once(memory, kind):
    memory.see([EMAIL], [sighting(1), sighting(2)])
    memory.hear(event(kind, 1))
    assert ports(memory) == [2]
    memory.see([EMAIL], [])
    memory.hear(event(kind, 2, fence=11))
    assert ports(memory) == []


def test_the_end_of_an_older_lease_ends_no_newer_one(memory):
    memory.see([EMAIL], [sighting(1, fence=20)])
    memory.hear(event("released", 1, fence=10))
    memory.hear(event("expired", 1, fence=19))
    assert ports(memory) == [1]


@pytest.mark.parametrize("state", [LeaseState.DRAINING, LeaseState.DEGRADED, LeaseState.STARTING])
def test_a_worker_that_is_not_ready_goes_at_once(memory, state):
    memory.see([EMAIL], [sighting(1), sighting(2)])
    memory.see([EMAIL], [sighting(1, state=state), sighting(2)])
    assert ports(memory) == [2]
    memory.hear(event("changed", 2, state=str(state)))
    assert ports(memory) == []


def test_a_port_that_is_granted_to_another_goes_from_the_one_that_had_it(memory):
    memory.see([EMAIL], [sighting(1), sighting(2)])
    memory.see([EMAIL], [])
    memory.hear(event("granted", 1, fence=30, plugin="stripe"))
    assert ports(memory) == [2]
    memory.see([("stripe", "o")], [sighting(2, fence=31, plugin="stripe")])
    assert ports(memory) == []
    assert ports(memory, ("stripe", "o")) == [2]
    assert memory.take_touched() == {EMAIL, ("stripe", "o")}


def test_a_worker_that_got_another_port_leaves_its_old_address(memory):
    memory.see([EMAIL], [sighting(1, instance=0)])
    memory.see([EMAIL], [])
    memory.see([EMAIL], [sighting(7, instance=0, fence=30, host="web-2")])
    assert ports(memory) == [7]
    memory.hear(event("reasserted", 9, instance=0, fence=40))
    assert ports(memory) == []


def test_its_own_new_grant_does_not_take_a_worker_out(memory):
    memory.see([EMAIL], [sighting(1)])
    memory.see([EMAIL], [])
    memory.hear(event("reasserted", 1, fence=30))
    assert ports(memory) == [1]


def test_in_a_fleet_a_port_is_one_workers_over_all_hosts(memory):
    memory.is_fleet = True
    memory.see([EMAIL], [sighting(1, host="web-1")])
    memory.hear(event("granted", 1, host="web-2", instance=5, fence=30))
    assert ports(memory) == []


def test_on_two_hosts_a_port_is_two_workers(memory):
    memory.see([EMAIL], [sighting(1, host="web-1", instance=0), sighting(1, host="web-2", instance=1)])
    memory.hear(event("granted", 1, host="web-2", instance=5, fence=30))
    assert [one.host for one in memory.endpoints(EMAIL)] == ["web-1"]


def test_a_lease_that_runs_out_in_plain_sight_leaves_nothing(memory, clock):
    memory.see([EMAIL], [sighting(1, left_s=5.0)])
    clock.now += 5.1
    memory.see([EMAIL], [])
    assert ports(memory) == []


def test_what_expired_while_redis_was_away_has_a_ttl_to_renew(memory, clock):
    memory.see([EMAIL], [sighting(1, left_s=5.0), sighting(2)])
    clock.now += 60
    memory.doubt()
    memory.see([EMAIL], [])
    memory.hear(event("expired", 2))
    assert ports(memory) == [1, 2]
    clock.now += TTL_S - 1
    memory.see([EMAIL], [sighting(1, fence=30)])
    assert ports(memory) == [1, 2]
    clock.now += 2
    memory.see([EMAIL], [sighting(1, fence=30)])
    memory.hear(event("expired", 1, fence=30))
    assert ports(memory) == []


def test_an_outage_begins_the_time_of_what_was_missed_anew(memory, clock):
    memory.see([EMAIL], [sighting(1)])
    memory.see([EMAIL], [])
    clock.now += 2 * TTL_S
    memory.doubt()
    memory.see([EMAIL], [])
    assert ports(memory) == [1]


def test_the_advertised_address_stays_until_the_host_gives_one_again(memory):
    memory.see([EMAIL], [sighting(1)])
    memory.see([EMAIL], [sighting(1, fence=30, address="")])
    assert [one.address for one in memory.endpoints(EMAIL)] == ["10.0.0.5"]
    memory.see([EMAIL], [sighting(1, fence=30, address="10.0.0.9")])
    assert [one.address for one in memory.endpoints(EMAIL)] == ["10.0.0.9"]


def test_a_host_that_is_forgotten_takes_its_addresses_along(memory):
    memory.see([EMAIL], [sighting(1), sighting(2, host="web-2")])
    memory.hear({"type": "forgotten", "host": "web-1", "port": "0", "worker": "-", "fence": "-"})
    assert ports(memory) == [2]


@pytest.mark.parametrize("fields", [{}, {"type": "released"}, {"type": "expired", "host": "web-1", "port": "x"}])
def test_an_event_of_another_program_ends_nothing(memory, fields):
    memory.see([EMAIL], [sighting(1)])
    memory.hear(fields)
    assert ports(memory) == [1]
