"""Which port a claim gets: the order of choice, and what happens when none is left."""

from __future__ import annotations

import pytest
from scripted_redis import HOUR, SECOND, claim, make_context

from allocator.model.errors import ConfigurationError, ExhaustedError, HeldError, InvalidInputError, PortRefusedError
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import decline, release
from allocator.operations.pools import apply_pool
from allocator.protocol.wire import written_ports

EMAIL = WorkerId("org-1", "email")
CUSTOM = WorkerId("org-1", "anything")


def take(store, context, worker=CUSTOM, pool="sdk-v2", **asked):
    return store.drive(claim(context, ClaimRequest(pool=pool, worker=worker, **asked)))


def small_pool(store, **changed):
    rules = {"name": "small", "first": 7001, "last": 7004, "conventional": {"email": (7001,)}, **changed}
    pool = PoolSpec(**rules)
    store.drive(apply_pool(pool))
    return pool


def test_the_first_claim_of_a_plugin_gets_its_conventional_port(store):
    assert take(store, make_context(), EMAIL).port == 5556


def test_a_plugin_without_a_conventional_port_gets_the_first_dynamic_one(store):
    assert take(store, make_context()).port == 5569


def test_the_explicit_port_goes_before_everything(store):
    context = make_context()
    store.drive(release(context, [take(store, context, EMAIL)]))
    assert take(store, context, EMAIL, port=5599, hint=5570).port == 5599


def test_the_port_this_worker_had_last_goes_before_the_hint(store):
    context = make_context()
    store.drive(release(context, [take(store, context, port=5580)]))
    store.advance(HOUR)
    assert take(store, context, hint=5570).port == 5580


def test_the_last_port_on_another_host_does_not_stick(store):
    there, here = make_context("web-2", machine="m2"), make_context()
    store.drive(release(there, [take(store, there, port=5580)]))
    assert take(store, here).port == 5569


def test_the_hint_goes_before_the_conventional_port(store):
    assert take(store, make_context(), EMAIL, hint=5590).port == 5590


@pytest.mark.parametrize("hint", [1, 5555, 5600, 65535])
def test_a_hint_outside_the_pool_is_no_hint(store, hint):
    assert take(store, make_context(), EMAIL, hint=hint).port == 5556


def test_a_second_organisation_of_the_plugin_gets_a_dynamic_port(store):
    context = make_context()
    take(store, context, EMAIL)
    assert take(store, context, WorkerId("org-2", "email")).port == 5569


def test_a_port_never_used_goes_before_one_that_is_free_again(store):
    context = make_context()
    store.drive(release(context, [take(store, context)]))
    store.advance(HOUR)
    assert take(store, context, WorkerId("org-2", "anything")).port == 5570


def test_the_port_free_for_longest_goes_first(store):
    context = make_context()
    small_pool(store, conventional={})
    held = [take(store, context, WorkerId("org-1", "p", i), "small") for i in range(4)]
    for i in (2, 0, 3, 1):
        store.drive(release(context, [held[i]]))
        store.advance(10 * SECOND)
    got = [take(store, context, WorkerId("org-2", "p", i), "small").port for i in range(4)]
    assert got == [held[i].port for i in (2, 0, 3, 1)]


def test_spill_takes_the_highest_idle_conventional_port(store):
    context = make_context()
    ports = [take(store, context, WorkerId("org-1", "p", i)).port for i in range(44)]
    assert ports == [*range(5569, 5600), *range(5568, 5555, -1)]
    with pytest.raises(ExhaustedError) as reported:
        take(store, context)
    assert 0 < reported.value.retry_after <= 35


def test_without_spill_the_ports_of_other_plugins_stay_idle(store):
    context = make_context()
    small_pool(store, spill=False)
    assert [take(store, context, WorkerId("o", "p", i), "small").port for i in range(3)] == [7002, 7003, 7004]
    with pytest.raises(ExhaustedError):
        take(store, context, WorkerId("o", "p", 9), "small")
    assert take(store, context, EMAIL, "small").port == 7001


def test_exhaustion_without_spill_does_not_wait_for_a_port_that_cannot_be_had(store):
    context = make_context()
    small_pool(store, spill=False)
    take(store, context, EMAIL, "small", ttl_ms=5 * SECOND)
    for i in range(3):
        take(store, context, WorkerId("o", "p", i), "small", ttl_ms=60 * SECOND)
    with pytest.raises(ExhaustedError) as reported:
        take(store, context, WorkerId("o", "p", 9), "small")
    assert reported.value.retry_after > 50


def test_ports_of_strangers_are_never_offered(store):
    store.listening = {5556, *range(5569, 5580), 5599}
    context = make_context()
    ports = {take(store, context, WorkerId("org-1", "email", i)).port for i in range(44 - 13)}
    assert not ports & store.listening
    with pytest.raises(ExhaustedError):
        take(store, context, WorkerId("org-1", "email", 99))
    store.listening = set()
    assert take(store, context, WorkerId("org-1", "email", 99)).port == 5556


def test_a_stranger_on_every_port_leaves_nothing_to_wait_for(store):
    store.listening = set(range(5556, 5600))
    with pytest.raises(ExhaustedError) as reported:
        take(store, make_context())
    assert reported.value.retry_after is None


def test_a_port_skipped_for_a_stranger_is_offered_when_it_left(store):
    context = make_context()
    store.listening = {5569}
    assert take(store, context).port == 5570
    store.listening = set()
    got = [take(store, context, WorkerId("o", "p", i)).port for i in range(30)]
    assert 5569 in got


def test_an_explicit_port_of_a_stranger_names_who_listens(store):
    store.listening = {5570}
    with pytest.raises(HeldError, match=r"node \(pid 4242\) listens on it"):
        take(store, make_context(), port=5570)


def test_an_explicit_port_that_is_leased_names_the_holder_and_the_wait(store):
    context = make_context()
    held = take(store, context, EMAIL)
    with pytest.raises(HeldError, match="port 5556 on web-1 is held by org-1/email#0 until") as reported:
        take(store, context, port=5556)
    assert reported.value.holder.fence == held.fence
    assert 34 < reported.value.retry_after <= 35
    assert reported.value.holder.token is None


def test_an_explicit_port_in_its_cooldown_states_for_how_long(store):
    context = make_context()
    store.drive(release(context, [take(store, context, EMAIL)]))
    with pytest.raises(HeldError, match="was given back") as reported:
        take(store, context, port=5556)
    assert 0 < reported.value.retry_after <= 1


@pytest.mark.parametrize("port", [1, 5555, 5600, 65535])
def test_an_explicit_port_outside_the_pool_changes_nothing(store, port):
    context = make_context()
    take(store, context, EMAIL)
    before = store.key_names()
    with pytest.raises(InvalidInputError, match="outside pool sdk-v2"):
        take(store, context, port=port)
    assert store.key_names() == before


def test_a_refused_port_is_declined_and_another_one_claimed(store):
    store.refused = {5556}
    assert take(store, make_context(), EMAIL).port == 5569
    assert store.event_types("sdk-v2")[-3:] == ["granted", "declined", "granted"]


def test_a_refused_port_that_is_the_only_one_is_an_error_that_names_who_has_it(store):
    store.refused = {5556}
    with pytest.raises(PortRefusedError, match="node \\(pid 4242\\) has it bound"):
        take(store, make_context(), EMAIL, port=5556)
    assert store.event_types("sdk-v2")[-2:] == ["granted", "declined"]


def test_a_host_whose_ports_are_all_refused_is_no_race(store):
    store.refused = set(range(5556, 5600))
    with pytest.raises(PortRefusedError):
        take(store, make_context(), EMAIL)
    assert store.event_types("sdk-v2").count("declined") == 6
    assert not [key for key in store.key_names() if ":lease:" in key]


def test_an_error_of_the_bind_proof_leaves_no_lease(store):
    context = make_context()
    operation = claim(context, ClaimRequest(pool="sdk-v2", worker=EMAIL))
    step = next(operation)
    while type(step).__name__ != "ProvePorts":
        step = operation.send(store.answer(step))
    step = operation.throw(ConfigurationError("no rights"))

    def to_its_end(step):
        while True:
            step = operation.send(store.answer(step))

    with pytest.raises(ConfigurationError, match="no rights"):
        to_its_end(step)
    assert not [key for key in store.key_names() if ":lease:" in key]


def test_a_declined_port_does_not_draw_its_worker_back_in_quarantine(store):
    context = make_context()
    lease = take(store, context)
    assert store.drive(decline(context, [lease])) == [True]
    assert take(store, context).port != lease.port


def test_a_pool_of_all_ports_is_claimed_to_its_end_past_strangers(store):
    pool = PoolSpec(name="all", first=1, last=65535)
    store.drive(apply_pool(pool))
    store.listening = set(range(1, 1_001))
    context = make_context()
    assert take(store, context, pool="all").port == 1_001
    assert sum(call.script == "claim" for call in store.calls) == 4
    store.calls.clear()
    assert take(store, context, WorkerId("org-1", "anything", 1), "all").port == 1_002
    assert sum(call.script == "claim" for call in store.calls) == 1
    assert take(store, context, WorkerId("org-1", "anything", 2), "all", port=65535).port == 65535


def test_a_shrunken_pool_of_many_retired_ports_still_finds_a_free_one(store):
    first = PoolSpec(name="wide", first=1, last=65535)
    store.drive(apply_pool(first))
    now = store.now_ms()
    base = "alloc:{wide}:ports:web-1"
    store.client.zadd(base, {str(port): now - 1_000_000 + port for port in range(20_001, 32_001)})
    store.client.zadd(base, {str(port): now - 500 for port in range(1, 20_001)})
    store.drive(apply_pool(PoolSpec(name="wide", first=1, last=20_000)))
    store.listening = set(range(1, 20_000))
    context = make_context()
    assert take(store, context, pool="wide").port == 20_000


def test_ports_are_written_as_ranges():
    assert written_ports([5580, 5556, 5557, 5558]) == "5556-5558,5580"
    assert written_ports([]) == ""


def test_the_default_pool_has_44_ports_in_the_written_order():
    assert SDK_V2.size == 44
    assert SDK_V2.dynamic_ranges() == ((5569, 5599),)
