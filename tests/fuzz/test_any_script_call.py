"""Whatever a script is called with, whatever its keys hold: a reply of its list, or one line and nothing written."""

from __future__ import annotations

import re
from typing import Any

import redis
from fuzzing import any_text, changed_keys, examples, state_of_all_keys
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_redis import ScriptedRedis, make_context

from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations.apply import apply_pool
from allocator.operations.claim import ClaimRequest, claim
from allocator.operations.end import decline, release
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply
from allocator.protocol.scripts import script_names

POOL = "fuzz"
BASE = f"alloc:{{{POOL}}}"
IDENTITY = "m1 b1 n1"
TOKENS = [f"{number:032x}" for number in range(6)]
RULES = PoolSpec(
    name=POOL, first=100, last=120, conventional={"email": (100,), "stripe": (101,)}, bands={"zendesk": (115, 116)},
    max_per_org=6, max_per_plugin=6, max_instances=4, cooldown_ms=60_000,
)  # fmt: skip

# The arguments that clients send, by kind; a call mixes them up.
PORT = st.sampled_from(["100", "101", "102", "110", "120", "121", "0"])
HOST = st.sampled_from(["web-1", "web-2", "*"])
WORKER = st.sampled_from(["org-1/email#0", "org-1/email#1", "org-2/stripe#0", "org-1/email#auto", "org-3/zendesk#9"])
TOKEN = st.sampled_from(TOKENS)
FENCE = st.sampled_from(["0", "1", "1700000000000000", "9007199254740993", "99999999999999999999"])
TTL = st.sampled_from(["1000", "30000", "86400000", "1"])
STATE = st.sampled_from(["starting", "ready", "degraded", "draining"])
EXTRA = st.sampled_from(["", ',"pid":1', ',"labels":{"a":"b"}'])
RANGES = st.sampled_from(["", "100", "100-120", "103,105-110"])
IDENTITIES = st.sampled_from([IDENTITY, "m2 b2 n2", "-", "m1 b1 n1 !10.0.0.1"])
COUNT = st.sampled_from(["0", "1", "64", "-1"])
NOTHING = st.just("")
PROOFS = st.lists(st.builds("{} {} ".format, FENCE, TOKEN), max_size=3).map("".join)
ORG, PLUGIN = st.sampled_from(["org-1", "-"]), st.sampled_from(["email", "-"])

FORMS: dict[str, tuple[list[st.SearchStrategy[str]], list[st.SearchStrategy[str]]]] = {
    "apply": ([st.sampled_from(["apply", "create", "restore"]), HOST], [st.sampled_from(list(RULES.as_fields())),
              st.sampled_from(list(RULES.as_fields().values()))]),
    "claim": ([HOST, WORKER, TOKEN, TTL, STATE, IDENTITIES, EXTRA, RANGES, PORT, PORT, FENCE, TOKEN], []),
    "claim_several": ([HOST, TTL, STATE, IDENTITIES, RANGES, st.sampled_from("01"), PORT], [WORKER, TOKEN, EXTRA]),
    "cordon": ([HOST, st.sampled_from(["on", "off"])], []),
    "decline": ([], [PORT, TOKEN]),
    "drain": ([HOST], [PORT]),
    "fail": ([PORT, TOKEN, EXTRA], []),
    "find": ([], [WORKER]),
    "forget": ([HOST], []),
    "index": ([st.sampled_from(["start", "ports", "done"])], [PORT]),
    "inspect": ([st.sampled_from(["pool", "hosts", "host", "ports", "port", "newest"]), PORT, COUNT], []),
    "keep": ([HOST, TTL, PROOFS], [PORT]),
    "lead": ([st.sampled_from(["take", "release"]), TOKEN, TTL, HOST, FENCE], []),
    "place": ([COUNT, COUNT, ORG, PLUGIN], []),
    "reap": ([COUNT], []),
    "recover": ([], []),
    "register": ([HOST, IDENTITIES], []),
    "release": ([], [PORT, TOKEN]),
    "renew": ([HOST, IDENTITIES], [PORT, TOKEN, FENCE, TTL, WORKER, st.sampled_from(["keep", "set"]), STATE, EXTRA]),
    "resolve": ([PLUGIN, ORG, st.sampled_from(["next", "all"]), COUNT | HOST], []),
    "restore": ([TTL], [HOST, PORT, WORKER, FENCE]),
    "wait": ([TOKEN, st.sampled_from(["join", "leave"]), HOST, WORKER, st.sampled_from("0129"), NOTHING, PORT,
             st.sampled_from(["any", "one", "limited"])], []),
}  # fmt: skip

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


def word(draw: st.DrawFn, form: st.SearchStrategy[str], tame: bool) -> str:
    return draw(form) if tame or draw(st.integers(0, 4)) else draw(any_text(max_size=20))


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """A script, its keys and arguments: as a client sends them, with some replaced, left out or added."""
    name = draw(st.sampled_from(sorted(FORMS)))
    head, repeated = FORMS[name]
    tame = draw(st.booleans())
    args = [word(draw, form, tame) for form in head]
    for _ in range(draw(st.integers(0, 3)) if repeated else 0):
        args += [word(draw, form, tame) for form in repeated]
    if not tame and draw(st.integers(0, 3)) == 0:
        args = args[: draw(st.integers(0, len(args)))]
    if not tame and draw(st.integers(0, 9)) == 0:
        args += draw(st.lists(any_text(max_size=10), max_size=4))
    keys = script_keys(POOL, draw(st.sampled_from(["web-1", "web-1", "web-1", "*", "web-2"])))
    if not tame and draw(st.integers(0, 15)) == 0:
        keys = draw(st.sampled_from([(), keys[:1], (keys[1], keys[0]), (BASE, BASE), ("", ""), (*keys, "x")]))
    return name, keys, tuple(args)


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
        store.drive(claim(context, ClaimRequest(pool=POOL, worker=WorkerId(org, plugin, number), token=TOKENS[at])))
        for at, (org, plugin, number) in enumerate(
            [("org-1", "email", 0), ("org-2", "stripe", 0), ("org-1", "email", 1), ("org-2", "email", 0)]
        )
    ]
    store.drive(release(context, leases[2:3]))
    store.drive(decline(context, leases[3:4]))
    store.client.delete(f"{BASE}:lease:web-1:{leases[1].port}")  # an end that nobody has seen
    keys = script_keys(POOL, "web-1")
    store.run(ScriptCall("wait", keys, (TOKENS[0], "join", "web-1", "org-1/email#7", "0", "", "0", "any")))
    store.run(ScriptCall("lead", keys, ("take", TOKENS[0], "60000", "somebody", "0")))


def assert_is_our_sentence(error: redis.ResponseError, call: Any) -> None:
    text = str(error)
    assert "\n" not in text, (call, text)
    assert not re.search(r"user_script|\bscript:|stack traceback", text), (call, text)
    assert text.startswith("ALLOC "), (call, text)
    assert len(text) < 500, (call, text)


def assert_is_a_reply(name: str, reply: Any, call: Any) -> None:
    assert isinstance(reply, list), (call, reply)
    if name in {"inspect", "find", "release", "decline", "restore", "renew", "keep"} or not reply:
        return
    assert reply[0].decode() in {str(code) for code in Reply}, (call, reply)


def test_every_script_is_tried() -> None:
    assert sorted(FORMS) == script_names()


def leased(*words: str) -> tuple[str, ...]:
    """Return what is said of one lease in `renew`, with these words in place of its last ones."""
    first = ("100", TOKENS[0], "1", "30000", "org-1/email#0", "set", "ready", "")
    return (*first[: len(first) - len(words)], *words)


HERE = script_keys(POOL, "web-1")
GOOD_THEN_BAD_TTL = ("web-1", IDENTITY, *leased(), "101", TOKENS[1], "1", "1e3", "org-2/stripe#0", "set", "ready", "")

GOOD_THEN_ENDED = (
    "web-1", IDENTITY, *leased(), "101", TOKENS[1], "1", "30000", "org-2/stripe#0", "set", "released", "",
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
@example(call=("claim", HERE, ("web-1", "nobody", TOKENS[5], "1e3", "ready", IDENTITY)), breakage=None)
@example(call=("index", (HERE[1], HERE[0]), ("done",)), breakage=None)
@example(
    call=("renew", HERE, ("web-2", IDENTITY, "110", TOKENS[0], "0", "1000", "org-1/email#0", "keep", "ready", "")),
    breakage=("string", f"{BASE}:host:web-1", b"", None),
)
@example(
    call=("claim_several", HERE, ("web-2", "30000", "ready", IDENTITY, "", "0", "0", "org-9/a#0", TOKENS[5], "")),
    breakage=("string", f"{BASE}:host:web-1", b"", None),
)
@example(call=("release", HERE, ("100", TOKENS[0])), breakage=("string", f"{BASE}:ports:web-1", b"", None))
@examples(1_000)
def test_a_script_answers_a_reply_or_one_sentence_and_changes_nothing_with_the_sentence(
    store: ScriptedRedis, call: Any, breakage: Any
) -> None:
    name, keys, args = call
    furnish(store)
    if breakage:
        broken(store.client, breakage)
    words: Any = tuple(word.encode(errors="surrogatepass") for word in args)
    before, reply = state_of_all_keys(store.client), None
    try:
        reply = store.run(ScriptCall(name, keys, words))
    except redis.ResponseError as answered:
        error = answered
    if reply is not None:
        assert_is_a_reply(name, reply, (call, breakage))
        return
    assert_is_our_sentence(error, (call, breakage))
    changed = changed_keys(store.client, before)
    assert not changed, (call, breakage, str(error), changed)
