"""Whatever a script is called with, whatever its keys hold: a reply of its list, or one line and nothing written."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import redis
from fuzzing import any_text, changed_keys, examples, state_of_all_keys
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scripted_redis import ScriptedRedis, claim, make_context

import allocator.protocol.signatures
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.model.states import LIVE_STATES, LeaseState
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import decline, release
from allocator.operations.pools import apply_pool
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.lead import LeadCall
from allocator.protocol.signatures.pool import ApplyCall, PoolField, RemoveCall
from allocator.protocol.signatures.queue import JoinCall
from allocator.protocol.signatures.resolve import ResolveAllCall
from allocator.protocol.wire import UNKNOWN_AGE_MS, Call, ScriptCall, assembled, script_keys, script_names

LUA = Path(allocator.protocol.__file__).parent / "lua"
POOL = "fuzz"
BASE = f"alloc:{{{POOL}}}"
IDENTITY = "m1 b1 n1"
TOKENS = [f"{number:032x}" for number in range(6)]
RULES = PoolSpec(
    name=POOL, first=100, last=120, conventional={"email": (100,), "stripe": (101,)}, bands={"zendesk": (115, 116)},
    max_per_org=6, max_per_plugin=6, max_instances=4, cooldown_ms=60_000,
)  # fmt: skip

HERE = script_keys(POOL, "web-1")
MARK = "redis.call('SET', KEYS[1] .. ':reached', '1')"
WRITING = {
    name: assembled(text.replace("-- writes --", MARK))
    for name, text in ((name, (LUA / f"{name}.lua").read_text()) for name in script_names())
    if "-- writes --" in text
}

# What a field of a call may hold, by its name; a call mixes them up. Another field gets any value of its type.
PORT = st.sampled_from([100, 101, 102, 110, 120, 121, 0])
WORKERS = ["org-1/email#0", "org-1/email#1", "org-2/stripe#0", "org-1/email#auto", "org-3/zendesk#9", "org-4/sms#0"]
FENCES = [0, 1, 1_700_000_000_000_000, 9_007_199_254_740_993, 99_999_999_999_999_999_999]
LIVE = [state for state in LeaseState if state in LIVE_STATES]
NAMED: dict[str, st.SearchStrategy[Any]] = {
    "alive_ms": st.sampled_from([0, 1, UNKNOWN_AGE_MS]),
    "by": st.sampled_from(["-", "ann"]),
    "condition": st.sampled_from(["any", "one", "block", "org", "plugin", "instances", "worker", "nothing"]),
    "count": st.sampled_from([0, 1, 64, -1]),
    "extra": st.sampled_from([{}, {"pid": 1}, {"labels": {"a": "b"}}]),
    "fence": st.sampled_from(FENCES),
    "holder": st.sampled_from(["me", "somebody"]),
    "host": st.sampled_from(["web-1", "web-1", "web-2", "*"]),
    "identity": st.sampled_from([IDENTITY, "m2 b2 n2", "-", "m1 b1 n1 !10.0.0.1"]),
    "known_fence": st.sampled_from(FENCES),
    "look_from": st.sampled_from([0, 101, 120, 65_637]),
    "most": st.sampled_from([0, 1, 64, -1]),
    "offset": st.sampled_from([0, 0, 1, 1_024]),
    "org": st.sampled_from(["org-1", "org-2", "-"]),
    "plugin": st.sampled_from(["email", "stripe", "-"]),
    "port": PORT,
    "position": st.sampled_from(["", "900000000000001"]),
    "prefer": st.sampled_from(["-", "web-1", "web-2"]),
    "priority": st.integers(0, 9),
    "state": st.sampled_from(LIVE),
    "strangers": st.sampled_from([frozenset(), {100}, {103, *range(105, 111)}, set(range(100, 121))]).map(frozenset),
    "superseded": st.sampled_from([0, 1]),
    "ticket": st.sampled_from(["", *TOKENS]),
    "token": st.sampled_from(TOKENS),
    "ttl_ms": st.sampled_from([1_000, 30_000, 86_400_000, 1]),
    "why": st.sampled_from(["it failed", ""]),
    "worker": st.sampled_from(WORKERS),
}
RULES_FIELDS = tuple(PoolField(name=name, value=value) for name, value in RULES.as_fields().items())
ENTIRE: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (ApplyCall, "fields"): st.sampled_from([RULES_FIELDS, RULES_FIELDS[:-1], RULES_FIELDS[1:]]),
}


def signatures() -> list[type[Call[Any]]]:
    """Return the class of every call that there is."""
    modules = pkgutil.iter_modules(allocator.protocol.signatures.__path__, "allocator.protocol.signatures.")
    found = {id(one): one for module in modules for one in vars(importlib.import_module(module.name)).values()}
    calls = [
        one for one in found.values() if isinstance(one, type) and issubclass(one, Call) and hasattr(one, "script")
    ]
    return sorted(calls, key=lambda one: one.__name__)


def values(owner: type, name: str, kind: Any) -> st.SearchStrategy[Any]:
    """Return what a field holds: by its name, else by its type."""
    if (owner, name) in ENTIRE:
        return ENTIRE[owner, name]
    if get_origin(kind) is tuple:
        member = get_args(kind)[0]
        one = records(member) if is_dataclass(member) else NAMED[name.removesuffix("s")]
        return st.lists(one, min_size=int(is_dataclass(member)), max_size=3).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    return NAMED[name] if name in NAMED else st.integers(0, 200_000) if kind is int else any_text(max_size=20)


def records(kind: Any) -> st.SearchStrategy[Any]:
    """Return what makes a record of this class from the types of its fields."""
    hints = get_type_hints(kind)
    fixed = {"mode"} if kind.__dataclass_fields__.get("mode") and hints["mode"] is str else set()
    given = {one.name: values(kind, one.name, hints[one.name]) for one in fields(kind) if one.name not in fixed}
    if issubclass(kind, Call):
        given |= {"pool": st.just(POOL), "namespace": st.sampled_from(["web-1", "web-1", "web-1", "*", "web-2"])}
    if kind.__name__ == "RenewedLease":
        given["mode"] = st.sampled_from(["keep", "set"])
    if "replicas" in given:
        given["replicas"] = st.just(0)
    return st.builds(kind, **given)


CALLS = {one: records(one) for one in signatures()}

SUFFIXES = (
    "", ":ports:web-1", ":ports:*", ":tokens:web-1", ":lease:web-1:100", ":lease:web-1:102", ":worker:org-1/email#0",
    ":worker:org-2/stripe#0", ":service:email:org-1", ":service:stripe:org-2", ":host:web-1", ":hosts", ":events",
    ":history", ":waiters:web-1", f":waiter:{TOKENS[0]}", f":turn:{TOKENS[0]}", ":leader", ":tokens:!leader",
    ":limited:org:org-1", ":limited:plugin:email", ":unreported", ":host:*",
)  # fmt: skip
FIELDS = (
    "rules", "dynamic", "fence", "waiting", "version", "limits", "bands", "reserved", "recovery", "counting",
    "conventional:email", "limit:org:org-1", "limit:plugin:email", "identity", "watermark", "due", "reaped", "cordon",
    "drain", "seq", "strikes:100", "100", "102",
)  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
    """A script, its keys and arguments: as a client sends them, with some replaced, left out or added."""
    call = draw(CALLS[draw(st.sampled_from(list(CALLS)))]).encode()
    keys, args = call.keys, list(call.args)
    if draw(st.booleans()):
        return call.script, keys, call.args
    args = [name if draw(st.integers(0, 4)) else draw(any_text(max_size=20)) for name in args]
    if draw(st.integers(0, 3)) == 0:
        args = args[: draw(st.integers(0, len(args)))]
    if draw(st.integers(0, 9)) == 0:
        args += draw(st.lists(any_text(max_size=10), max_size=4))
    if draw(st.integers(0, 15)) == 0:
        keys = draw(st.sampled_from([(), keys[:1], (keys[1], keys[0]), (BASE, BASE), ("", ""), (*keys, "x")]))
    return call.script, keys, tuple(args)


@st.composite
def breakages(draw: st.DrawFn) -> tuple[Any, ...]:
    """Something that another program wrote under our prefix."""
    key = BASE + draw(st.sampled_from(SUFFIXES))
    value = draw(any_text(max_size=20)).encode(errors="surrogatepass")
    kind = draw(
        st.sampled_from(["string", "list", "set", "hash", "zset", "stream", "field", "field", "member", "delete"])
    )
    if kind in {"field", "hash"}:
        return kind, key, draw(st.sampled_from(FIELDS)), value
    if kind in {"member", "zset"}:
        score = draw(st.sampled_from([0.0, -1.0, 1.5, 1e15, 1e300, float("inf"), float("-inf")]))
        return kind, key, value or b"x", score
    return kind, key, value, None


def broken(client: redis.Redis, breakage: tuple[Any, ...]) -> None:
    kind, key, what, value = breakage
    try:
        if kind not in {"field", "member"}:
            client.delete(key)
        if kind == "string":
            client.set(key, what)
        elif kind == "list":
            client.rpush(key, what)
        elif kind == "set":
            client.sadd(key, what)
        elif kind in {"hash", "field"}:
            client.hset(key, what, value)
        elif kind in {"zset", "member"}:
            client.zadd(key, {what: value})
        elif kind == "stream":
            client.xadd(key, {"x": what})
    except redis.ResponseError:
        pass  # a field or member of a key of another kind


def furnish(store: ScriptedRedis) -> None:
    """Give the pool leases, ended ones, a waiter and a leader."""
    store.client.flushall()
    context = make_context()
    store.drive(apply_pool(RULES))
    leases = [
        store.drive(claim(context, ClaimRequest(pool=POOL, worker=worker, token=TOKENS[at], state=state)))
        for at, (worker, state) in enumerate(
            [
                (WorkerId("org-1", "email", 0), LeaseState.READY),
                (WorkerId("org-2", "stripe", 0), LeaseState.STARTING),
                (WorkerId("org-1", "email", 1), LeaseState.STARTING),
                (WorkerId("org-2", "email", 0), LeaseState.STARTING),
            ]
        )
    ]
    store.drive(release(context, leases[2:3]))
    store.drive(decline(context, leases[3:4]))
    store.client.delete(f"{BASE}:lease:web-1:{leases[1].port}")  # an end that nobody has seen
    waiter = JoinCall(
        pool=POOL,
        namespace="web-1",
        ticket=TOKENS[0],
        host="web-1",
        worker="org-1/email#7",
        priority=0,
        condition="any",
    )
    store.run(waiter.encode())
    store.run(LeadCall(pool=POOL, token=TOKENS[0], ttl_ms=60_000, holder="somebody").encode())


def assert_is_our_sentence(error: redis.ResponseError, call: Any) -> None:
    text = str(error)
    assert "\n" not in text, (call, text)
    assert not re.search(r"user_script|\bscript:|stack traceback", text), (call, text)
    assert text.startswith("ALLOC "), (call, text)
    assert len(text) < 500, (call, text)


def assert_is_a_reply(name: str, reply: Any, call: Any) -> None:
    assert isinstance(reply, list), (call, reply)
    if name in {"inspect", "find", "end", "restore", "renew", "extend"} or not reply:
        return
    assert reply[0].decode() in {str(code) for code in Reply}, (call, reply)


def test_every_script_is_tried() -> None:
    assert sorted(set().union(*map(scripts_of, CALLS))) == script_names()


def scripts_of(kind: type[Call[Any]]) -> set[str]:
    """Return the scripts that calls of a class are for."""
    found: set[str] = set()

    @settings(max_examples=20, database=None, derandomize=True)
    @given(call=CALLS[kind])
    def draw(call: Call[Any]) -> None:
        found.add(call.encode().script)

    draw()
    return found


READS_ONLY = {ResolveAllCall}
"""Calls that write nothing, of scripts that do for others."""

OF_A_POOL_WITHOUT_HOSTS = {RemoveCall}
"""Calls that are refused while the pool has hosts."""


@pytest.mark.parametrize("kind", [kind for kind in CALLS if kind not in READS_ONLY], ids=lambda kind: kind.__name__)
def test_calls_of_the_fuzz_pass_every_check_of_their_script(store: ScriptedRedis, kind: type[Call[Any]]) -> None:
    """A fuzz whose calls are all refused tests nothing of what is written."""
    wanted, reached = scripts_of(kind) & set(WRITING), set[str]()

    @settings(max_examples=400, database=None, derandomize=True, phases=[Phase.generate], deadline=None)
    @given(call=CALLS[kind])
    def send(call: Call[Any]) -> None:
        one = call.encode()
        if wanted <= reached or one.script not in WRITING:
            return
        furnish(store)
        if kind in OF_A_POOL_WITHOUT_HOSTS:
            store.client.delete(f"{BASE}:hosts")
        with contextlib.suppress(redis.ResponseError, UnicodeEncodeError):  # text that UTF-8 cannot have is not sent
            store.client.eval(WRITING[one.script], len(one.keys), *one.keys, *one.args)
        if store.client.exists(f"{BASE}:reached"):
            reached.add(one.script)

    send()
    assert wanted <= reached


def leased(*arguments: str) -> tuple[str, ...]:
    """Return what is said of one lease in `renew`, with these words in place of its last ones."""
    first = ("100", TOKENS[0], "1", "30000", "org-1/email#0", "set", "ready", "", "")
    return (*first[: len(first) - len(arguments)], *arguments)


GOOD_THEN_BAD_TTL = (
    "web-1", IDENTITY, *leased(), "101", TOKENS[1], "1", "1e3", "org-2/stripe#0", "set", "ready", "", "",
)  # fmt: skip

GOOD_THEN_ENDED = (
    "web-1", IDENTITY, *leased(), "101", TOKENS[1], "1", "30000", "org-2/stripe#0", "set", "released", "", "",
)  # fmt: skip


@given(call=calls(), breakage=st.none() | breakages())
@example(call=("renew", HERE, GOOD_THEN_BAD_TTL), breakage=None)
@example(call=("renew", HERE, GOOD_THEN_ENDED), breakage=None)
@example(call=("renew", HERE, ("web-1", IDENTITY, *leased()[:-3])), breakage=None)
@example(call=("restore", HERE, ("x", "web-1", "110", "org-9/a#0", "1")), breakage=None)
@example(call=("restore", HERE, ("1e400", "web-1", "110", "org-9/a#0", "1")), breakage=None)
@example(call=("lead", HERE, ("take", TOKENS[0], "0", "me", "0")), breakage=None)
@example(call=("restore", HERE, ("1000", "web-1", "110", "org-9/a#0", "x")), breakage=None)
@example(call=("apply", HERE, ("apply", "me")), breakage=None)
@example(call=("apply", HERE, ("apply", "me", "rules", RULES.rules, "dynamic")), breakage=None)
@example(call=("wait", HERE, (TOKENS[1], "join", "web-1", "o/p#0", "x", "", "0", "any")), breakage=None)
@example(call=("wait", HERE, (TOKENS[1], "join", "web-1", "o/p#0", "0", " 1", "0", "any")), breakage=None)
@example(call=("claim", HERE, ("web-1", "1e3", "ready", IDENTITY, "0", "1", "nobody", TOKENS[5])), breakage=None)
@example(call=("index", (HERE[1], HERE[0]), ("done",)), breakage=None)
@example(
    call=("renew", HERE, ("web-2", IDENTITY, "110", TOKENS[0], "0", "1000", "org-1/email#0", "keep", "ready", "", "")),
    breakage=("string", f"{BASE}:host:web-1", b"", None),
)
@example(
    call=("claim", HERE, ("web-2", "30000", "ready", IDENTITY, "0", "1", "org-9/a#0", TOKENS[5])),
    breakage=("string", f"{BASE}:host:web-1", b"", None),
)
@example(call=("end", HERE, ("released", "100", TOKENS[0])), breakage=("string", f"{BASE}:ports:web-1", b"", None))
@examples(1_000)
def test_a_script_answers_a_reply_or_one_sentence_and_changes_nothing_with_the_sentence(
    store: ScriptedRedis, call: Any, breakage: Any
) -> None:
    name, keys, args = call
    furnish(store)
    if breakage:
        broken(store.client, breakage)
    text: Any = tuple(value.encode(errors="surrogatepass") if isinstance(value, str) else value for value in args)
    before, reply = state_of_all_keys(store.client), None
    try:
        reply = store.run(ScriptCall(name, keys, text))
    except redis.ResponseError as answered:
        error = answered
    if reply is not None:
        assert_is_a_reply(name, reply, (call, breakage))
        return
    assert_is_our_sentence(error, (call, breakage))
    changed = changed_keys(store.client, before)
    assert not changed, (call, breakage, str(error), changed)
