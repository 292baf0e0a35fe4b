"""What another program wrote under our prefix: one sentence that names the key, and nothing changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from scripted_redis import SECOND, assert_same_state, claim, error_of, make_context

from allocator.model.errors import AllocatorError, ConfigurationError
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import read_pool
from allocator.operations.end import decline, release
from allocator.operations.hosts import drain, forget, place, register
from allocator.operations.listing import cordon, leases, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.operations.resolve import endpoints, resolve
from allocator.protocol import wire
from allocator.protocol.keys import pool_of_key
from allocator.protocol.wire import ScriptCall, script_keys

EMAIL = WorkerId("org-1", "email")
SUFFIXES = [
    "", ":ports:web-1", ":tokens:web-1", ":lease:web-1:5556", ":worker:org-1/email#0", ":service:email:org-1",
    ":host:web-1", ":hosts", ":events",
]  # fmt: skip


def request(**asked):
    return ClaimRequest(pool="sdk-v2", worker=EMAIL, **asked)


def operations(context, lease):
    return {
        "claim": lambda: claim(context, request()),
        "claim again": lambda: claim(context, request(token=lease.token)),
        "claim port": lambda: claim(context, ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p"), port=5556)),
        "renew": lambda: renew(context, [lease]),
        "rewrite": lambda: renew(context, [lease], rewrite=True),
        "release": lambda: release(context, [lease]),
        "decline": lambda: decline(context, [lease]),
        "reap": lambda: reap("sdk-v2"),
        "cordon": lambda: cordon("sdk-v2", "web-1", on=True),
        "apply": lambda: apply_pool(PoolSpec(name="sdk-v2", first=1, last=65535)),
        "leases": lambda: leases("sdk-v2"),
        "resolve": lambda: resolve(make_context(), "sdk-v2", "email", "org-1"),
        "endpoints": lambda: endpoints("sdk-v2", "email", "org-1"),
        "drain": lambda: drain("sdk-v2", "web-1"),
        "forget": lambda: forget("sdk-v2", "web-1"),
        "place": lambda: place("sdk-v2", EMAIL, spread="org"),
        "register": lambda: register(replace(context, address="10.0.0.1"), "sdk-v2"),
    }


def break_key(client, key, kind):
    client.delete(key)
    if kind == "set":
        client.sadd(key, "x")
    else:
        client.set(key, "x")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("aged", ["live", "expired", "lost"])
def test_a_key_of_the_wrong_type_is_named_and_nothing_changes(store, suffix, aged):
    context = make_context()
    key = "alloc:{sdk-v2}" + suffix
    for name in operations(context, None):
        store.client.flushall()
        context.rules.clear()
        lease = store.drive(claim(context, request()))
        if aged == "expired":
            store.advance(40 * SECOND)
        elif aged == "lost":
            store.client.flushall()
            store.drive(apply_pool(SDK_V2))
        break_key(store.client, key, "set")
        before = store.dump()
        operation = operations(context, lease)[name]()
        error = error_of(lambda operation=operation: store.drive(operation))
        if isinstance(error, redis.ResponseError):
            assert str(error).startswith(f"ALLOC key {key} holds a value of the wrong type"), (name, error)
            assert "\n" not in str(error)
            assert_same_state(before, store.dump())
        elif error:
            assert isinstance(error, AllocatorError), (name, error)
        # The script had no need of that key; it must not have destroyed it either, where it is not the lease's.
        elif "lease" not in suffix:
            assert store.client.type(key) == b"set", name


@pytest.mark.parametrize(
    ("suffix", "field", "value"),
    [
        ("", "rules", "abc"), ("", "rules", ""), ("", "rules", SDK_V2.rules.replace("5556", "")),
        ("", "rules", SDK_V2.rules.replace("grace_ms=5000", "grace_ms=5s")), ("", "rules", None), ("", "dynamic", None),
        (":tokens:web-1", "5556", "garbage"), (":tokens:web-1", "5556", ""),
    ],
)  # fmt: skip
def test_a_garbled_field_is_named(store, suffix, field, value):
    context = make_context()
    lease = store.drive(claim(context, request()))
    key = "alloc:{sdk-v2}" + suffix
    for name in ("claim other", *operations(context, lease)):
        if value is None:
            store.client.hdel(key, field)
        else:
            store.client.hset(key, field, value)
        before = store.dump()
        if name == "claim other":
            operation = claim(context, ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p")))
        else:
            operation = operations(context, lease)[name]()
        error = error_of(lambda operation=operation: store.drive(operation))
        if isinstance(error, redis.ResponseError):
            assert str(error).startswith(f"ALLOC key {key} has "), (name, error)
            assert field in str(error)
            assert_same_state(before, store.dump())
        elif error:
            assert isinstance(error, AllocatorError), (name, error)


@pytest.mark.parametrize("suffix", [":lease:web-1:5556", ":worker:org-1/email#0"])
@pytest.mark.parametrize("value", ["", "x", "{}", '{"host":"a"}', "\x00\xff", "9" * 5_000])
def test_a_garbled_lease_or_address_is_named(store, suffix, value):
    context = make_context()
    lease = store.drive(claim(context, request()))
    key = "alloc:{sdk-v2}" + suffix
    for name in operations(context, lease):
        store.client.set(key, value)
        operation = operations(context, lease)[name]()
        error = error_of(lambda operation=operation: store.drive(operation))
        if isinstance(error, redis.ResponseError):
            assert str(error).startswith(f"ALLOC key {key} does not hold"), (name, error)
        elif error:
            assert isinstance(error, AllocatorError), (name, error)
            assert "\n" not in str(error)


def test_a_pool_key_without_its_fields_asks_to_apply_it_again(store):
    store.client.hset("alloc:{mine}", mapping={"rules": "first=1 last=x"})
    with pytest.raises(ConfigurationError, match=r"key alloc:\{mine\} does not hold a pool"):
        store.drive(read_pool("mine"))


def test_a_renewal_that_remembers_the_address_anew_leaves_alone_what_is_no_address_and_goes_on(store):
    context = make_context()
    two_hours = 7_200_000  # the place is written anew once an hour: with this TTL at every renewal
    lease = store.drive(claim(context, request(ttl_ms=two_hours)))
    key = "alloc:{sdk-v2}:worker:org-1/email#0"
    break_key(store.client, key, "set")
    for rewrite in (False, True):
        (outcome,) = store.drive(renew(context, [lease], rewrite=rewrite))
        assert not outcome.lost
        assert store.client.type(key) == b"set"


def test_a_stranger_member_in_the_ports_is_named(store):
    context = make_context()
    store.drive(claim(context, request()))
    for port in range(5569, 5600):
        store.client.zadd("alloc:{sdk-v2}:ports:web-1", {str(port): store.now_ms() + 10**6})
    store.client.hset("alloc:{sdk-v2}:host:web-1", "watermark", "5600 1")
    store.client.zadd("alloc:{sdk-v2}:ports:web-1", {"not-a-port": 1})
    with pytest.raises(redis.ResponseError, match="ports:web-1 has a garbled field not-a-port"):
        store.drive(claim(context, ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p"))))


@pytest.mark.parametrize(
    "script",
    [
        "claim",
        "extend",
        "renew",
        "release",
        "decline",
        "reap",
        "cordon",
        "apply",
        "inspect",
        "resolve",
        "register",
        "drain",
        "forget",
        "place",
    ],
)
def test_any_script_called_without_arguments_answers_an_error_or_nothing_but_changes_nothing(store, script):
    store.drive(apply_pool(SDK_V2))
    before = store.dump()
    error = error_of(lambda: store.run(ScriptCall(script, script_keys("sdk-v2", "web-1"), ())))
    assert "\n" not in str(error)
    if script != "apply":
        assert_same_state(before, store.dump())


@pytest.mark.parametrize(("value", "wanted"), [(b"5", 5.0), ("inf", float("inf")), (7, 7.0), (b"1e3", 1_000.0)])
def test_numbers_of_replies(value, wanted):
    assert wire.number(value) == wanted


def test_replies_of_the_wrong_shape_are_reported_in_one_line():
    with pytest.raises(ConfigurationError, match="where a number belongs"):
        wire.number(b"<html>\r\n")
    with pytest.raises(ConfigurationError, match="is this server a Redis or Valkey"):
        wire.reply_list(b"OK")
    with pytest.raises(ConfigurationError, match="which is not a lease"):
        wire.lease("p", b'{"port":1}', remaining_ms=1, now_ms=1)


def test_pool_keys_read_back():
    assert pool_of_key("alloc:{p}") == "p"
    assert pool_of_key("alloc:{p}:hosts") is None
    assert pool_of_key("other:{p}") is None
