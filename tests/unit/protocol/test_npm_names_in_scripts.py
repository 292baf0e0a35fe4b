"""Plugins with the names of npm packages: every script reads them as one name; their short name finds their port."""

from __future__ import annotations

import pytest
from scripted_redis import HOUR, claim, claim_several, error_of, make_context

from allocator.model.errors import LimitError
from allocator.model.names import WorkerId, short_name
from allocator.model.pools import PoolSpec
from allocator.model.states import LeaseState
from allocator.operations import listing
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import read_pool
from allocator.operations.end import release
from allocator.operations.pools import apply_pool
from allocator.operations.resolve import endpoints, resolve

EMAIL = "@hay/plugin-email"


def pool(**rules):
    return PoolSpec(**{"name": "p", "first": 7001, "last": 7020, "conventional": {"email": (7001,)}} | rules)


def take(store, context, plugin=EMAIL, org="o", instance=0, **asked):
    return store.drive(claim(context, ClaimRequest(pool="p", worker=WorkerId(org, plugin, instance), **asked)))


@pytest.mark.parametrize("plugin", [EMAIL, "@hay/email-plugin", "@other/email", "plugin-email", "email-plugin"])
def test_the_short_name_has_the_conventional_port(store, plugin):
    store.drive(apply_pool(pool()))
    assert take(store, make_context(), plugin).port == 7001


@pytest.mark.parametrize("plugin", ["@hay/plugin", "plugin-a-plugin", "@a/b-plugin", "@a/plugin-b.c"])
def test_the_scripts_make_the_same_short_name(store, plugin):
    store.drive(apply_pool(pool(conventional={short_name(plugin): (7005,)})))
    assert take(store, make_context(), plugin).port == 7005


def test_a_pool_that_names_a_plugin_in_full_goes_before_its_short_name(store):
    store.drive(apply_pool(pool(conventional={"email": (7001,), EMAIL: (7002,)}, bands={EMAIL: (7010, 7012)})))
    assert take(store, make_context()).port == 7002
    assert take(store, make_context(), "@other/plugin-email").port == 7001
    assert take(store, make_context(), org="second").port == 7010
    assert store.drive(read_pool("p")) == pool(
        conventional={"email": (7001,), EMAIL: (7002,)}, bands={EMAIL: (7010, 7012)}
    )


def test_a_band_of_the_short_name_is_its_plugins(store):
    store.drive(apply_pool(pool(conventional={}, bands={"email": (7010, 7012)})))
    context = make_context()
    assert take(store, context).port == 7010
    assert take(store, context, port=7011, org="second").port == 7011
    assert "in the band of plugin email" in str(error_of(lambda: take(store, context, "@hay/stripe", port=7012)))


def test_several_ports_at_once_begin_with_the_conventional_one(store):
    store.drive(apply_pool(pool()))
    context = make_context()
    request = ClaimRequest(pool="p", worker=WorkerId("o", EMAIL))
    tokens = [f"{number:032x}" for number in range(2)]
    leases = store.drive(claim_several(context, request, ["http", "debug"], contiguous=False, tokens=tokens))
    assert [(one.plugin, one.port) for one in leases] == [(EMAIL, 7001), (f"{EMAIL}+debug", 7002)]


def test_limits_count_it_and_find_its_ends(store):
    store.drive(apply_pool(pool(plugin_limits={EMAIL: 2}, max_instances=1)))
    context = make_context()
    take(store, context, ttl_ms=1_000)
    assert isinstance(error_of(lambda: take(store, context, instance=1)), LimitError)
    take(store, context, org="second")
    assert isinstance(error_of(lambda: take(store, context, org="third")), LimitError)
    store.advance(HOUR)
    take(store, context, org="third")
    assert [one["worker"] for one in store.events("p") if one["type"] == "expired"]


def test_it_is_found_listed_and_ended_by_its_name(store):
    store.drive(apply_pool(pool()))
    context = make_context()
    lease = take(store, context, state=LeaseState.READY, instance=3)
    assert [one.worker for one in store.drive(listing.leases("p"))] == [WorkerId("o", EMAIL, 3)]
    assert store.drive(resolve(make_context(), "p", EMAIL, "o")).port == 7001
    assert [one.worker for one in store.drive(endpoints("p", EMAIL, "o"))] == [lease.worker]
    assert store.drive(endpoints("p", "email", "o")) == []
    assert store.drive(release(context, [lease])) == [True]
    assert store.drive(endpoints("p", EMAIL, "o")) == []
