"""The ACL file against a real server: each role can do its work and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from servers import Server, cluster, wait_until

from allocator import (
    AllocatorError,
    AsyncPortAllocator,
    ConfigurationError,
    ExhaustedError,
    HeldError,
    Lease,
    LeaseState,
    NoWorkerError,
    PoolSpec,
    PortAllocator,
    WorkerId,
)
from allocator.database.leader import Leader
from allocator.operations import end, find, listing
from allocator.operations import hosts as host_operations
from allocator.operations.lead import Remembered, restore
from allocator.operations.numbers import number_of
from allocator.protocol.wire import ScriptCall, script, script_keys, script_names

if TYPE_CHECKING:
    from collections.abc import Iterator

ACL = Path(__file__).parents[3] / "deploy/redis/users.acl"
WORKING = ("holder", "reader", "reconciler")
ROLES = (*WORKING, "operator")
READY = LeaseState.READY
SPEC = PoolSpec(name="acl", first=24_500, last=24_543, cooldown_ms=0)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binary = None
    if request.param == "redis":
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed; its package of the distribution has it")
    lines = [line for line in ACL.read_text().splitlines() if not line.startswith("#")]
    for role in ROLES:
        hashed = hashlib.sha256(f"{role}-word".encode()).hexdigest()
        lines = [
            line.replace("#" + "0" * 64, f"#{hashed}") if line.startswith(f"user {role} ") else line for line in lines
        ]
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    file.write_text("\n".join([*lines, "user admin on nopass ~* &* +@all"]) + "\n")
    with Server("--aclfile", str(file), binary=binary) as server:
        server.ready(username="admin", password="x")
        yield server


def as_role(server: Server, role: str, host: str = "web-1") -> PortAllocator:
    name = "x" if role == "admin" else f"{role}-word"
    return PortAllocator.from_url(f"redis://{role}:{name}@127.0.0.1:{server.port}", pool=SPEC.name, host=host)


def client(server: Server, role: str) -> redis.Redis:
    return server.client(username=role, password="x" if role == "admin" else f"{role}-word")


@pytest.fixture
def empty(guarded: Server) -> Server:
    client(guarded, "admin").flushall()
    with as_role(guarded, "admin") as ports:
        ports.apply_pool(SPEC)
    return guarded


def contents(server: Server) -> dict[bytes, object]:
    """Return what every key holds."""
    admin = client(server, "admin")
    read = {
        b"hash": admin.hgetall,
        b"string": admin.get,
        b"zset": lambda key: admin.zrange(key, 0, -1, withscores=True),
        b"stream": admin.xrange,
    }
    return {key: read[admin.type(key)](key) for key in admin.scan_iter()}


def test_a_holder_does_all_that_a_worker_needs(empty: Server) -> None:
    with as_role(empty, "holder") as ports:
        lease = ports.claim("email", org="org-1", labels={"a": "b"})
        ports.renew(lease, rewrite=True)
        assert ports.register()
        assert [one.port for one in ports.leases()] == [lease.port]
        assert ports.hosts()[0].leases == 1
        assert ports.store.pool_names() == [SPEC.name]
        assert ports.store.wait_for_event(f"alloc:{{{SPEC.name}}}:events", "0-0", 5)
        assert ports.release(lease)
        assert ports.decline(ports.claim("stripe", org="org-1"))
        ports.run(listing.reap(SPEC.name))
        ports.run(host_operations.drain(SPEC.name, "web-1"))
        ports.run(listing.cordon(SPEC.name, "web-1", on=False))


def test_a_reader_sees_everything_but_tokens_and_changes_nothing(empty: Server) -> None:
    with as_role(empty, "holder") as holder, as_role(empty, "reader") as reader:
        lease = holder.claim("email", org="org-1")
        before = contents(empty)
        assert [one.port for one in reader.leases()] == [lease.port]
        assert reader.hosts()[0].leases == 1
        assert reader.pool().first == SPEC.first
        assert reader.store.newest_events(f"alloc:{{{SPEC.name}}}:events", 10)
        assert reader.store.pool_names() == [SPEC.name]
        for change in (
            lambda: reader.claim("stripe", org="org-1"),
            lambda: reader.renew(lease),
            lambda: reader.release(lease),
            lambda: reader.decline(lease),
            lambda: reader.apply_pool(SPEC.__class__(name=SPEC.name, first=SPEC.first, last=SPEC.last - 1)),
            lambda: reader.run(listing.cordon(SPEC.name, "web-1", on=True)),
            lambda: reader.run(host_operations.drain(SPEC.name, "web-1")),
        ):
            with pytest.raises(ConfigurationError, match="does not allow this user") as refused:
                change()
            assert str(lease.token) not in str(refused.value)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client(empty, "reader").hgetall(f"alloc:{{{SPEC.name}}}:tokens:web-1")
        assert contents(empty) == before


@pytest.mark.parametrize("name", script_names())
def test_no_script_changes_anything_for_a_reader(empty: Server, name: str) -> None:
    with as_role(empty, "holder") as holder:
        lease = holder.claim("email", org="org-1")
    before = contents(empty)
    keys = [f"alloc:{{{SPEC.name}}}", f"alloc:{{{SPEC.name}}}:ports:web-1"]
    options = [
        "web-1",
        "org-9/stripe#0",
        "0" * 32,
        "30000",
        str(lease.port),
        "0",
        "starting",
        "",
        "m b n",
        "0",
        "",
        "",
        "",
    ]
    for arguments in (
        options,
        [str(lease.port), str(lease.token)],
        ["64"],
        ["web-1", "on"],
        ["take", "x", "0" * 32, "5000"],
    ):
        with contextlib.suppress(redis.ResponseError):
            client(empty, "reader").eval(script(name).source, len(keys), *keys, *arguments)
    after = contents(empty)
    assert after.keys() == before.keys()
    changed = [key for key in after if after[key] != before[key]]
    assert changed == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("DEBUG", "SLEEP", "0"),
        ("MONITOR",),
        ("SCRIPT", "FLUSH"),
        ("SET", "elsewhere", "1"),
        ("GET", "elsewhere"),
        ("EVAL", "return redis.call('SET', 'elsewhere', 1)", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("SUBSCRIBE", "channel"),
        ("MIGRATE", "127.0.0.1", "1", "alloc:{acl}", "0", "10"),
    ],
    ids=lambda command: command[0] if isinstance(command, tuple) else command,
)
def test_no_role_can_do_what_it_does_not_need(empty: Server, role: str, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.ResponseError) as refused:
        client(empty, role).execute_command(*command)
    assert any(
        name in str(refused.value).lower() for name in ("permission", "no access", "acl", "not allowed", "can't")
    )


@pytest.mark.parametrize("role", WORKING)
@pytest.mark.parametrize("command", [("CLIENT", "KILL", "ID", "1"), ("SCRIPT", "KILL"), ("ACL", "LOG")], ids=str)
def test_only_an_operator_ends_what_others_do(empty: Server, role: str, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        client(empty, role).execute_command(*command)


def test_an_operator_ends_a_script_that_runs_for_ever(empty: Server) -> None:
    client(empty, "admin").config_set("busy-reply-threshold", 50)
    endless = threading.Thread(target=run_for_ever, args=(empty,))
    endless.start()
    operator = client(empty, "operator")
    with as_role(empty, "holder") as holder:

        def is_ended() -> bool:
            with contextlib.suppress(redis.ResponseError):
                operator.script_kill()
            return not endless.is_alive()

        wait_until(is_ended, "the script goes on")
        endless.join()
        assert holder.claim("email", org="org-1").port


def run_for_ever(server: Server) -> None:
    with contextlib.suppress(redis.ResponseError):
        client(server, "reader").eval("while true do end", 0)


def test_a_reader_takes_turns_by_itself_and_writes_nothing(empty: Server) -> None:
    with contextlib.ExitStack() as stack:
        holder, reader = (stack.enter_context(as_role(empty, role)) for role in ("holder", "reader"))
        for number in range(3):
            holder.renew(replace(holder.claim("email", org="org-1", instance=number), state=READY), rewrite=True)
        before = contents(empty)
        client(empty, "admin").acl_log_reset()
        turns = Counter(reader.resolve("email", org="org-1").port for _ in range(9))
        assert list(turns.values()) == [3, 3, 3]
        refused = [one for one in client(empty, "admin").acl_log() if one["object"] == "zadd"]
        assert [one["count"] for one in refused] == [1]  # and not one for each turn
        with pytest.raises(NoWorkerError, match="has a lease"):
            reader.resolve("stripe", org="org-1")
        assert contents(empty) == before
        with pytest.raises(redis.exceptions.NoPermissionError):
            client(empty, "reader").zadd(f"alloc:{{{SPEC.name}}}:service:email:org-1", {"made-up": 1})


def test_an_operator_sees_and_changes_no_lease(empty: Server) -> None:
    operator = client(empty, "operator")
    assert operator.client_list()
    assert operator.acl_log() is not None
    key = f"alloc:{{{SPEC.name}}}"
    for command in (("HGETALL", key), ("GET", f"{key}:lease:web-1:1"), ("DEL", key), ("EVAL", "return 1", "0")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            operator.execute_command(*command)


def test_a_reconciler_leads_restores_adopts_and_reads(empty: Server) -> None:
    with as_role(empty, "holder") as holder, as_role(empty, "reconciler") as reconciler:
        lease = holder.claim("email", org="org-1")
        assert [one.port for one in reconciler.leases()] == [lease.port]
        reconciler.run(listing.reap(SPEC.name))
        first, second = Leader(reconciler), Leader(reconciler)
        assert first.take().fence is not None
        assert second.take().holder == first.holder
        first.renew()
        first.give_up()
        assert second.take().fence is not None
        remembered = Remembered(WorkerId("org-2", "stripe"), "web-1", SPEC.last, 7)
        assert reconciler.run(restore(SPEC, [remembered], 60_000)) == [True]
        adopted = reconciler.claim("slack", org="org-3", port=SPEC.last - 1)
        assert reconciler.release(adopted)


LIMITED = replace(SPEC, max_per_org=40)
SOMEBODY = WorkerId("org-1", "email")
Use = Callable[[PortAllocator, Lease], object]


def wait_in_the_queue(ports: PortAllocator, lease: Lease) -> None:
    """Wait for a port that is leased, and leave the line again."""
    with contextlib.suppress(HeldError, ExhaustedError):
        ports.claim("stripe", org="org-2", port=lease.port, wait=0.3)


def recover(ports: PortAllocator, _lease: Lease) -> None:
    ports.store.call(ScriptCall("recover", script_keys(SPEC.name)))


USES: dict[str, Use] = {
    "apply": lambda ports, _: ports.apply_pool(LIMITED),
    "claim": lambda ports, _: ports.claim("stripe", org="org-2"),
    "claim several": lambda ports, _: ports.claim_ports("stripe", ["http", "debug"], org="org-2"),
    "host cordon": lambda ports, _: ports.run(listing.cordon(SPEC.name, "web-1", on=True)),
    "end declined": lambda ports, lease: ports.decline(lease),
    "host drain": lambda ports, _: ports.run(host_operations.drain(SPEC.name, "web-1")),
    "renew failed": lambda ports, lease: ports.run(end.fail(ports.session.context, lease, "it ended")),
    "find": lambda ports, _: ports.run(find.find(SPEC, [SOMEBODY])),
    "host forget": lambda ports, _: ports.run(host_operations.forget(SPEC.name, "web-2")),
    "index": lambda ports, _: ports.apply_pool(LIMITED),
    "inspect": lambda ports, _: ports.leases(),
    "extend": lambda ports, lease: ports.renew(lease),
    "lead": lambda ports, _: Leader(ports).take(),
    "number": lambda ports, _: ports.run(number_of(ports.session.context, SPEC.name, "org-2", "stripe", "a")),
    "place": lambda ports, _: ports.run(host_operations.place(SPEC.name, SOMEBODY)),
    "reap": lambda ports, _: ports.run(listing.reap(SPEC.name)),
    "recover": recover,
    "remove": lambda ports, _: ports.run(
        host_operations.remove_pool(SPEC.name, by="ann", forced=end.Forced("ann", "not used"))
    ),
    "host register": lambda ports, _: ports.register(),
    "end released": lambda ports, lease: ports.release(lease),
    "renew": lambda ports, lease: ports.renew(lease, rewrite=True),
    "resolve": lambda ports, _: ports.endpoints("email", org="org-1"),
    "restore": lambda ports, _: ports.run(restore(SPEC, [Remembered(SOMEBODY, "web-9", SPEC.last, 7)], 60_000)),
    "wait": wait_in_the_queue,
}
"""How each script is used, by whoever may: the script, then which of its uses."""
FOR_READERS = {"inspect", "place", "resolve"}


def test_every_script_is_tried() -> None:
    assert sorted({name.split()[0] for name in USES}) == script_names()


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("role", ["holder", "reconciler"])
def test_every_script_works_for_those_who_hold_or_reconcile(empty: Server, role: str, name: str) -> None:
    with as_role(empty, role, host="web-2") as other:
        other.register()
    with as_role(empty, role) as ports:
        if name not in {"apply", "index"}:
            ports.apply_pool(LIMITED)
        lease = ports.claim("email", org="org-1")
        USES[name](ports, lease)


@pytest.mark.parametrize("name", USES)
def test_every_script_is_for_readers_or_refused_to_them(empty: Server, name: str) -> None:
    with as_role(empty, "holder") as holder, as_role(empty, "holder", host="web-2") as other:
        lease = holder.claim("email", org="org-1")
        other.register()
    before = contents(empty)
    with as_role(empty, "reader", host="web-3") as reader:
        if name in FOR_READERS:
            USES[name](reader, lease)
        else:
            with pytest.raises(ConfigurationError, match="does not allow this user"):
                USES[name](reader, lease)
    assert contents(empty) == before


def test_the_reconciler_has_the_rights_of_a_holder_as_the_file_states() -> None:
    lines = [line.split(" ", 2) for line in ACL.read_text().splitlines() if line.startswith("user ")]
    rights = {name: rest for _, name, rest in lines}
    assert rights["reconciler"] == rights["holder"]


def test_work_within_the_rights_leaves_no_refusal_in_the_log(empty: Server) -> None:
    async def look() -> None:
        url = f"redis://reader:reader-word@127.0.0.1:{empty.port}"
        async with AsyncPortAllocator.from_url(url, pool=SPEC.name, host="web-1") as reader:
            await reader.leases()

    admin = client(empty, "admin")
    admin.acl_log_reset()
    with as_role(empty, "holder") as holder, as_role(empty, "reader") as reader:
        holder.claim("email", org="org-1")
        assert reader.leases()
    with as_role(empty, "reconciler") as reconciler:
        assert Leader(reconciler).take().fence is not None
    asyncio.run(look())
    assert admin.acl_log() == []


def test_the_wrong_password_is_a_clear_error(empty: Server) -> None:
    with (
        PortAllocator.from_url(f"redis://holder:S3CRET@127.0.0.1:{empty.port}", host="web-1") as ports,
        pytest.raises(AllocatorError, match="password") as refused,
    ):
        ports.claim("email", org="org-1")
    assert "S3CRET" not in str(refused.value)


@pytest.mark.parametrize("role", WORKING)
def test_each_role_gets_into_a_cluster(role: str) -> None:
    line = next(line for line in ACL.read_text().splitlines() if line.startswith(f"user {role} "))
    arguments = ["nopass" if argument == "#" + "0" * 64 else argument for argument in line.split()[2:]]
    with cluster() as nodes:
        for node in nodes:
            node.client().execute_command("ACL", "SETUSER", role, *arguments)
        with PortAllocator.from_url(f"redis+cluster://127.0.0.1:{nodes[0].port}", pool=SPEC.name) as ports:
            ports.apply_pool(SPEC)
            lease = ports.claim("email", org="org-1")
        url = f"redis+cluster://{role}:word@127.0.0.1:{nodes[1].port}"
        with PortAllocator.from_url(url, pool=SPEC.name, host="web-1") as ports:
            assert [one.fence for one in ports.leases()] == [lease.fence]
            if role != "reader":
                assert ports.release(ports.claim("stripe", org="org-1"))
