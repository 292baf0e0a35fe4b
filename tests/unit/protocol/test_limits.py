"""Limits: per organisation, per plugin, per service, bands, and the lowest free instance; counted from live leases."""

from __future__ import annotations

import pytest
from scripted_redis import MINUTE, claim, error_of, make_context

from allocator.model.errors import HeldError, InvalidInputError, LimitError, RecoveringError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import read_pool
from allocator.operations.end import decline, release
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.protocol.replies import Reply

POOL = "p"


def rules(**arguments):
    return PoolSpec(**{"name": POOL, "first": 7001, "last": 7040, "cooldown_ms": 0} | arguments)


@pytest.fixture(params=["host", "fleet"])
def scope(request):
    return request.param


def take(store, context, org, plugin, number=0, **arguments):
    return store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId(org, plugin, number), **arguments)))


def refused(store, context, org, plugin, number=0):
    return error_of(lambda: take(store, context, org, plugin, number))


def test_an_organisation_gets_no_more_than_its_limit_over_all_hosts(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_per_org=3, org_limits={"big": 4})))
    hosts = [make_context(f"web-{number}") for number in range(3)]
    held = [take(store, hosts[number], "o", f"p{number}") for number in range(3)]
    error = refused(store, hosts[0], "o", "late")
    assert isinstance(error, LimitError)
    assert "max_per_org: organisation o may have 3 leases, and there are 3 (" in str(error)
    assert set(error.holders) == {f"o/p{number}#0" for number in range(3)}
    assert take(store, hosts[0], "other", "p0")
    store.drive(release(hosts[1], [held[1]]))
    assert take(store, hosts[0], "o", "late")
    for number in range(4):
        take(store, hosts[0], "big", "x", number)
    assert isinstance(refused(store, hosts[1], "big", "x", 4), LimitError)


def test_a_plugin_gets_no_more_than_its_limit_over_all_organisations(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_per_plugin=2, plugin_limits={"email": 1})))
    context = make_context()
    take(store, context, "a", "email")
    assert "plugin email may have 1 leases" in str(refused(store, context, "b", "email"))
    take(store, context, "a", "x")
    take(store, context, "b", "x")
    assert isinstance(refused(store, context, "c", "x"), LimitError)


def test_a_service_gets_no_more_instances_than_its_limit(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_instances=2)))
    context = make_context()
    take(store, context, "o", "email", 0)
    second = take(store, context, "o", "email", 1)
    assert "max_instances: o/email may have 2 workers" in str(refused(store, context, "o", "email", 2))
    assert take(store, context, "o", "stripe", 0)
    store.drive(decline(context, [second]))
    assert take(store, context, "o", "email", 2)


def test_leases_that_expired_do_not_count_and_their_end_is_reported_before_the_grant(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_per_org=2)))
    context = make_context()
    for number in range(2):
        take(store, context, "o", "p", number)
    store.advance(MINUTE)
    take(store, context, "o", "q")
    take(store, context, "o", "r")
    open_now = 0
    for event in store.events(POOL):
        open_now += {"granted": 1, "expired": -1}.get(event["type"], 0)
        assert open_now <= 2
    assert store.event_types(POOL).count("expired") == 2


def test_the_same_worker_claiming_again_is_no_further_lease(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_per_org=1, max_instances=1, max_per_plugin=1)))
    context = make_context()
    lease = take(store, context, "o", "p")
    assert take(store, context, "o", "p", token=lease.token).port == lease.port
    newer = take(store, context, "o", "p", supersede_fence=lease.fence)
    assert newer.fence > lease.fence


def test_a_running_worker_that_redis_forgot_gets_its_lease_back_and_counts_again(store, scope):
    store.drive(apply_pool(rules(scope=scope, max_per_org=1)))
    context = make_context()
    lease = take(store, context, "o", "p")
    store.client.flushall()
    assert store.drive(renew(context, [lease]))[0].reasserted
    if isinstance(refused(store, context, "o", "q"), RecoveringError):  # its grace passes
        run_id = store.client.hget("alloc:{p}", "recovery").split()[0]
        store.client.hset("alloc:{p}", "recovery", b"%s 1 2" % run_id)
    assert isinstance(refused(store, context, "o", "q"), LimitError)


def test_a_limit_below_what_is_used_revokes_nothing_and_holds_for_the_next(store, scope):
    store.drive(apply_pool(rules(scope=scope)))
    context = make_context()
    held = [take(store, context, "o", "p", number) for number in range(5)]
    assert store.drive(apply_pool(rules(scope=scope, max_per_org=2))) is Reply.CHANGED
    assert not any(outcome.lost for outcome in store.drive(renew(context, held)))
    error = refused(store, context, "o", "q")
    assert "may have 2 leases, and there are 5" in str(error)
    store.drive(release(context, held[:4]))
    assert take(store, context, "o", "q")
    assert isinstance(refused(store, context, "o", "r"), LimitError)


def test_counting_that_was_interrupted_is_finished_by_applying_again(store):
    store.drive(apply_pool(rules()))
    context = make_context()
    for number in range(3):
        take(store, context, "o", "p", number)
    operation = apply_pool(rules(max_per_org=1))
    step = next(operation)
    while step.script != "apply":
        step = operation.send(store.run(step))
    store.run(step)  # and the one who applied is gone
    assert refused(store, context, "o", "q") is None
    assert store.drive(apply_pool(rules(max_per_org=1))) is Reply.UNCHANGED
    assert "there are 4" in str(refused(store, context, "o", "r"))


def test_a_limit_of_none_at_all_and_one_of_many(store):
    store.drive(apply_pool(rules(first=2000, last=4999, ttl_ms=3_600_000, max_per_org=1_500, org_limits={"banned": 0})))
    context = make_context()
    assert isinstance(refused(store, context, "banned", "p"), LimitError)
    for number in range(1_500):
        take(store, context, "o", f"p{number}")
    assert "there are 1500" in str(refused(store, context, "o", "late"))


def test_names_with_dots_and_hyphens_are_counted_as_they_are(store):
    store.drive(apply_pool(rules(max_per_org=1, max_per_plugin=5)))
    context = make_context()
    take(store, context, "a.b-c", "p.q-r")
    assert isinstance(refused(store, context, "a.b-c", "x"), LimitError)
    assert take(store, context, "axb-c", "p.q-r")


def test_a_band_is_for_its_plugin_alone_whatever_way_it_is_asked_for(store, scope):
    store.drive(apply_pool(rules(scope=scope, last=7006, bands={"stripe": (7003, 7004)}, conventional={"x": (7001,)})))
    context = make_context()
    error = error_of(lambda: take(store, context, "o", "p", port=7003))
    assert isinstance(error, HeldError)
    assert "port 7003 on web-1 is in the band of plugin stripe" in str(error)
    assert take(store, context, "o", "p", 1, hint=7004).port not in {7003, 7004}
    others = {take(store, context, "o", "p", number).port for number in (2, 3, 4)}
    assert others <= {7001, 7002, 7005, 7006}
    assert "no port of pool p" in str(refused(store, context, "o", "p", 5))
    assert {take(store, context, "o", "stripe", number).port for number in range(2)} == {7003, 7004}


def test_a_pool_with_all_of_it_reads_back_as_it_was_applied(store):
    spec = rules(
        max_per_org=1, max_per_plugin=2, max_instances=3, org_limits={"a.b": 4}, plugin_limits={"x-y": 5},
        bands={"stripe": (7010, 7019), "x": (7020, 7020)}, conventional={"stripe": (7001,)}, durability="replica",
    )  # fmt: skip
    store.drive(apply_pool(spec))
    assert store.drive(read_pool(POOL)) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_per_org": -1}, "max_per_org -1 is out of bounds"),
        ({"max_per_plugin": 5000}, "give 0 to 4096"),
        ({"org_limits": {"a b": 1}}, "organisation"),
        ({"bands": {"x": (7050, 7060)}}, "outside 7001-7040"),
        ({"bands": {"x": (7010, 7005)}}, "band of x ends before it begins"),
        ({"bands": {"x": (7001, 7005), "y": (7005, 7006)}}, "belongs to both"),
        ({"bands": {"x": (7001, 7005)}, "conventional": {"y": (7002,)}}, "belongs to both"),
    ],
)
def test_limits_that_cannot_be_right_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        rules(**arguments)


def test_the_lowest_free_instance_is_taken_and_the_same_again_for_the_same_token(store, scope):
    store.drive(apply_pool(rules(scope=scope)))
    context = make_context()

    def auto(token=None, host=context):
        asked = ClaimRequest(pool=POOL, worker=WorkerId("o", "p"), auto_instance=True, token=token)
        return store.drive(claim(host, asked))

    leases = [auto() for _ in range(4)]
    assert [lease.instance for lease in leases] == [0, 1, 2, 3]
    again = auto(token=leases[2].token)
    assert (again.instance, again.fence) == (2, leases[2].fence)
    store.drive(release(context, [leases[1]]))
    assert auto(host=make_context("web-2")).instance == 1
    assert auto().instance == 4
