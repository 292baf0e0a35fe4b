"""The scripts under any order of calls, losses and repetitions, against a model that is too simple to be wrong.

Every script is sent once or twice; the second time must leave the state as the first did and say so. After every
step the promises of the design are read from the raw keys.
"""

from __future__ import annotations

import contextlib
import json
from itertools import count
from typing import Any

import fakeredis
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from lease_model import LeaseModel
from scripted_redis import MINUTE, ScriptedRedis, assert_same_state, claim

from allocator.model.errors import CordonedError, ExhaustedError, HeldError, InvalidInputError
from allocator.model.leases import Lease
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import Context
from allocator.operations.end import decline, release
from allocator.operations.listing import cordon, leases, reap
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew

HOSTS = ("web-1", "web-2")
WORKERS = tuple(WorkerId(f"org-{n}", plugin) for n in (1, 2) for plugin in ("email", "stripe", "other"))
GRACE_MS, COOLDOWN_MS, TTL_MS = 1_215_000, 607_500, 3_630_000
BASE = "alloc:{p}"
NARROW = {"first": 7001, "last": 7004, "conventional": {"email": (7001,)}}
WIDE = {"first": 7001, "last": 7006, "conventional": {"email": (7001,), "stripe": (7002, 7006)}}

workers, hosts, ports = st.sampled_from(WORKERS), st.sampled_from(HOSTS), st.sampled_from(range(7001, 7007))
twice = st.booleans()
steps_of_time = st.sampled_from([7 * MINUTE, 14 * MINUTE, 35 * MINUTE, 70 * MINUTE, 140 * MINUTE])


def pool(scope: str, **shape: Any) -> PoolSpec:
    return PoolSpec(
        name="p", scope=scope, ttl_ms=TTL_MS, grace_ms=GRACE_MS, cooldown_ms=COOLDOWN_MS, **shape
    )  # fmt: skip


class Protocol(RuleBasedStateMachine):
    """One pool, two hosts, six workers, six ports."""

    scope = "host"

    def make_store(self) -> ScriptedRedis:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.model = LeaseModel()
        self.rules = pool(self.scope, **WIDE)
        self.cordoned: set[str] = set()
        self.disturbed = False
        tokens = count(1)
        self.contexts = {
            host: Context(
                host=host, identity=f"machine-{host} b n",
                clock=lambda: 5.0, new_token=lambda: f"{next(tokens):032x}", rules={"p": self.rules},
            )
            for host in HOSTS
        }  # fmt: skip
        self.store.drive(apply_pool(self.rules))

    # --- how calls are made ---

    def namespace(self, host: str) -> str:
        return "*" if self.scope == "fleet" else host

    def call(self, operation: Any, twice: bool) -> Any:
        """Drive an operation; when `twice`, each script is sent again after its reply was thrown away."""
        try:
            step = next(operation)
            while True:
                if twice and type(step).__name__ == "ScriptCall":
                    first = self.store.run(step)
                    once = self.store.dump()
                    second = self.store.run(step)
                    assert_same_state(once, self.store.dump())
                    assert self._is_the_same(step.script, first, second), (step, first, second)
                    step = operation.send(second)
                else:
                    step = operation.send(self.store.answer(step))
        except StopIteration as end:
            return end.value

    @staticmethod
    def _is_the_same(script: str, first: Any, second: Any) -> bool:
        allowed = {b"granted": {b"same"}, b"released": {b"already"}, b"declined": {b"already"},
                   b"created": {b"unchanged"}, b"changed": {b"unchanged"}, b"reasserted": {b"renewed"}}  # fmt: skip
        if script in {"inspect", "reap"}:
            return True
        if script == "extend" and len(first) > 1:  # the reaper may have become due meanwhile
            return bool((first[1], first[3:]) == (second[1], second[3:]))
        at = {"renew": 1}.get(script, 0)
        codes = list(zip(first[at::2], second[at::2], strict=True)) if script in {"renew", "release", "decline"} else [
            (first[0], second[0])
        ]  # fmt: skip
        return all(two in allowed.get(one, {one}) for one, two in codes)

    def tokens(self) -> list[str]:
        return sorted(self.model.held)

    # --- rules ---

    @rule(worker=workers, host=hosts, port=st.none() | ports, hint=st.none() | ports, twice=twice,
          strangers=st.sets(ports, max_size=3))  # fmt: skip
    def claim(
        self, worker: WorkerId, host: str, port: int | None, hint: int | None, twice: bool, strangers: set[int]
    ) -> None:
        self.store.listening = strangers
        context, namespace = self.contexts[host], self.namespace(host)
        live = self.model.surely_live()
        mine = [each for each in live if each.lease.worker == worker]
        try:
            lease = self.call(claim(context, ClaimRequest(pool="p", worker=worker, port=port, hint=hint)), twice)
        except ExhaustedError as error:
            refused_all = isinstance(error, CordonedError)
            assert refused_all == (host in self.cordoned)
            if not refused_all:
                assert not [
                    each
                    for each in range(self.rules.first, self.rules.last + 1)
                    if self.model.surely_claimable(namespace, each) and each not in strangers
                ]
            return
        except HeldError as error:
            if error.holder is None or error.holder.worker != worker:
                assert port is not None
                assert port in strangers or not self.model.surely_claimable(namespace, port)
            return
        except InvalidInputError:
            assert port is not None
            assert port not in self.rules
            return
        assert not mine or self.disturbed, f"{worker} has {mine[0].lease} already"
        assert lease.port in self.rules
        assert lease.port not in strangers
        assert port is None or lease.port == port
        assert host not in self.cordoned
        key = (namespace, lease.port)
        came_back = self.model.own.get(key) == str(worker)
        assert came_back or self.model.passed(self.model.free_at.get(key, -1e12)) is not False
        assert lease.fence > self.model.newest_fence
        assert not [each for each in live if self.same_port(each.lease, lease)] or self.disturbed
        self.model.granted(namespace, lease, GRACE_MS)

    def same_port(self, one: Lease, two: Lease) -> bool:
        return one.port == two.port and self.namespace(one.host) == self.namespace(two.host)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), twice=twice, rewrite=st.booleans())
    def renew(self, data: st.DataObject, twice: bool, rewrite: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.tokens()), min_size=1, max_size=4, unique=True))
        held = [self.model.held[token] for token in chosen]
        sure = {each.lease.token for each in self.model.surely_live()}
        context = self.contexts[data.draw(hosts)]
        newest_before = self.model.newest_fence
        outcomes = self.call(renew(context, [each.lease for each in held], rewrite=rewrite), twice)
        for each, outcome in zip(held, outcomes, strict=True):
            if outcome.lost:
                assert each.lease.token not in sure or self.disturbed, outcome.lost
                continue
            assert each.may_return or not each.ended, f"{each.lease} came back after its end"
            if outcome.lease.fence != each.lease.fence:
                assert outcome.lease.fence > newest_before
            self.model.renewed(self.namespace(each.lease.host), outcome.lease, GRACE_MS)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), twice=twice, how=st.sampled_from([release, decline]))
    def end(self, data: st.DataObject, twice: bool, how: Any) -> None:
        token = data.draw(st.sampled_from(self.tokens()))
        held = self.model.held[token]
        before = self.live_keys()
        newest = {
            (self.namespace(each.lease.host), each.lease.port): each.lease.fence for each in self.model.held.values()
        }
        try:
            (ended,) = self.call(how(self.contexts[held.lease.host], [held.lease]), False)
            if twice:
                assert self.call(how(self.contexts[held.lease.host], [held.lease]), True) == [False]
        except HeldError:
            assert self.live_keys() == before
            return
        assert newest
        if not ended:
            assert self.live_keys() == before
            return
        assert not held.ended
        others = {
            key: fence for key, fence in before.items() if key != (self.namespace(held.lease.host), held.lease.port)
        }
        assert others.items() <= self.live_keys().items()
        self.model.ended(
            self.namespace(held.lease.host), token, COOLDOWN_MS if how is release else 5_000, may_return=how is release
        )
        if how is decline:
            self.model.declined(token, self.same_port)
            self.model.quarantined[self.namespace(held.lease.host), held.lease.port] = 595_000

    @rule(token=st.sampled_from(["f" * 32, "0" * 32, "a"]))
    def renew_and_end_with_a_wrong_token(self, token: str) -> None:
        before = self.store.dump()
        for lease in self.store.drive(leases("p")):
            wrong = Lease(
                pool="p", host=lease.host, port=lease.port, worker=lease.worker, fence=lease.fence, ttl_ms=TTL_MS,
                granted_at=0, expires_at=0, token=token,
            )  # fmt: skip
            (outcome,) = self.store.drive(renew(self.contexts[lease.host], [wrong], rewrite=True))
            assert outcome.lost
            for how in (release, decline):
                with pytest.raises(HeldError):
                    self.store.drive(how(self.contexts[lease.host], [wrong]))
        assert_same_state(before, self.store.dump())

    @precondition(lambda self: self.model.surely_live())
    @rule(data=st.data(), twice=twice, port=st.none() | ports)
    def supersede(self, data: st.DataObject, twice: bool, port: int | None) -> None:
        self.store.listening = set()
        held = data.draw(st.sampled_from(self.model.surely_live()))
        old, namespace = held.lease, self.namespace(held.lease.host)
        request = ClaimRequest(pool="p", worker=old.worker, supersede_fence=old.fence, port=port)
        live_before = (namespace, old.port) in self.live_keys()
        try:
            lease = self.call(claim(self.contexts[old.host], request), twice)
        except (HeldError, ExhaustedError, InvalidInputError):
            return
        if live_before and old.port != lease.port:
            self.model.free_at[namespace, old.port] = self.model.now() + GRACE_MS
        if live_before:
            held.ended = True
        self.model.granted(namespace, lease, GRACE_MS)

    @rule(ms=steps_of_time)
    def time_passes(self, ms: int) -> None:
        self.store.advance(ms)
        self.model.offset += ms

    @rule(twice=twice)
    def reap(self, twice: bool) -> None:
        before = self.live_keys()
        self.call(reap("p"), twice)
        assert self.live_keys() == before

    @rule(host=hosts, on=st.booleans(), twice=twice)
    def cordon(self, host: str, on: bool, twice: bool) -> None:
        try:
            self.call(cordon("p", host, on=on), twice)
        except InvalidInputError:
            return
        (self.cordoned.add if on else self.cordoned.discard)(host)

    @rule(shape=st.sampled_from([NARROW, WIDE]), twice=twice)
    def apply(self, shape: Any, twice: bool) -> None:
        before = self.live_keys()
        self.rules = pool(self.scope, **shape)
        self.call(apply_pool(self.rules), twice)
        for context in self.contexts.values():
            context.rules["p"] = self.rules
        assert self.live_keys() == before

    @rule()
    def script_flush(self) -> None:
        self.store.client.script_flush()

    @rule()
    def data_loss(self) -> None:
        """FLUSHALL, and every holder that is alive renews before anyone else comes."""
        live = self.model.surely_live()
        self.store.client.flushall()
        self.cordoned.clear()
        self.model.forget_all()
        if not live:
            self.store.drive(apply_pool(self.rules))
            self.recovery_passes()  # who renews later, though its lease has run out, would else begin it
            return
        fences = self.model.newest_fence
        for each, outcome in zip(
            live, self.store.drive(renew(self.contexts["web-1"], [each.lease for each in live])), strict=True
        ):
            assert outcome.reasserted, outcome.lost
            assert outcome.lease.port == each.lease.port
            assert outcome.lease.fence > fences
            self.model.renewed(self.namespace(each.lease.host), outcome.lease, GRACE_MS)
        self.recovery_passes()

    def recovery_passes(self) -> None:
        """Let the grace of a fleet-wide pool pass, which every holder has used to renew."""
        with contextlib.suppress(redis.RedisError):  # a fake has no run id, and so no such grace
            run_id = self.store.client.info("server")["run_id"]
            self.store.client.hset(BASE, "recovery", f"{run_id} 1 2")

    # --- promises ---

    def live_keys(self) -> dict[tuple[str, int], int]:
        found = {}
        for key in self.store.client.scan_iter(match=BASE + ":lease:*", count=1_000):
            namespace, port = key.decode().removeprefix(BASE + ":lease:").rsplit(":", 1)
            text = self.store.client.get(key)
            if text:
                found[namespace, int(port)] = json.loads(text)["fence"]
        return found

    @invariant()
    def every_lease_key_is_one_workers_only_lease_with_its_time_and_token(self) -> None:
        client, seen = self.store.client, {}
        for (namespace, port), fence in self.live_keys().items():
            key = f"{BASE}:lease:{namespace}:{port}"
            lease, left = json.loads(client.get(key)), client.pttl(key)
            assert lease["port"] == port
            assert seen.setdefault(lease["worker"], port) == port, f"{lease['worker']} has two leases"
            score = client.zscore(f"{BASE}:ports:{namespace}", str(port))
            now = self.store.now_ms()
            assert abs(score - (now + left + GRACE_MS)) < 2_000
            grant = client.hget(f"{BASE}:tokens:{namespace}", str(port)).decode().split()
            assert grant[0] == str(fence)
            assert (grant[2], grant[3]) == (lease["host"], lease["worker"])
            address = json.loads(client.get(f"{BASE}:worker:{lease['worker']}"))
            assert (address["host"], address["port"], address["fence"]) == (lease["host"], port, fence)
            org, plugin = lease["worker"].split("#")[0].split("/")
            assert client.zscore(f"{BASE}:service:{plugin}:{org}", f"{lease['host']}:{port}") is not None
            assert int(client.hget(BASE, "fence")) >= fence

    @invariant()
    def who_surely_holds_a_lease_has_it(self) -> None:
        keys = self.live_keys()
        for each in self.model.surely_live():
            assert keys.get((self.namespace(each.lease.host), each.lease.port)) == each.lease.fence, each

    def teardown(self) -> None:
        """Once everything ended and was reaped, nothing is left but what is meant to be remembered."""
        try:
            self.store.advance(140 * MINUTE)
            for _ in range(50):
                wait = self.store.drive(reap("p")).next_s
                if wait is None:
                    break
            assert wait is None
            for key in self.store.key_names():
                kind = key.removeprefix(BASE).split(":")[1] if ":" in key.removeprefix(BASE) else "pool"
                assert kind in {"pool", "ports", "tokens", "worker", "host", "hosts", "events", "history"}, key
            for key in self.store.client.scan_iter(match=BASE + ":tokens:*"):
                for port, grant in self.store.client.hgetall(key).items():
                    assert grant[:1] in b"-~!", (port, grant)
        finally:
            self.store.listening = set()


@pytest.mark.parametrize("scope", ["host", "fleet"])
def test_the_promises_hold_on_fakeredis(profile, scope):
    class OnFake(Protocol):
        def make_store(self) -> ScriptedRedis:
            return ScriptedRedis(fakeredis.FakeRedis(server=fakeredis.FakeServer()))

    OnFake.scope = scope
    run_state_machine_as_test(OnFake, settings=profile)


@pytest.mark.parametrize("scope", ["host", "fleet"])
def test_the_promises_hold_on_a_real_server(profile, real_server, scope):
    class OnServer(Protocol):
        def make_store(self) -> ScriptedRedis:
            real_server.client.flushall()
            return ScriptedRedis(real_server.client)

    OnServer.scope = scope
    run_state_machine_as_test(OnServer, settings=profile)
