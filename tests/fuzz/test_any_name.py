"""Any text as a name: refused in one line, or good for every key, event, row, file and JSON that it gets into."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from fuzzing import accepted, any_json, any_text, examples
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_redis import ScriptedRedis, claim, make_context

from allocator.api.hub import PoolEvent
from allocator.client.lease_files import LeaseFiles
from allocator.client.session import make_session
from allocator.model.durations import parse_duration_ms, ttl_in_ms, written_duration
from allocator.model.errors import AllocatorError
from allocator.model.leases import error_line
from allocator.model.names import (
    WorkerId,
    check_address,
    check_labels,
    check_name,
    check_plugin,
    check_port,
    check_priority,
    check_token,
    environment_names,
)
from allocator.model.pools import PoolSpec
from allocator.model.tables import TableNames
from allocator.operations import listing
from allocator.operations.attempt import ClaimRequest
from allocator.operations.end import release
from allocator.operations.pools import apply_pool
from allocator.operations.resolve import endpoints
from allocator.protocol.keys import pool_of_key
from allocator.protocol.wire import pool_key

if TYPE_CHECKING:
    import pytest

NAME = st.one_of(
    any_text(max_size=140),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,140}", fullmatch=True),
    st.sampled_from(
        [
            "a.b_c-d",
            "0",
            "a" * 128,
            "auto",
            "*",
            "org.x",
            "A",
            "a+b",
            "a+b+c",
            "+a",
            "a+",
            "-",
            "a/b",
            "a#1",
            "@",
            "@/x",
            "@a/",
            "@a/b",
            "@a/..",
            "@A/b",
            "@a/b+c",
            "@hay/plugin-email",
            "@a/" + "b" * 211,
            "@a/é",
        ],
    ),
)
TEXTS = st.one_of(NAME, st.builds(lambda a, b, c: f"{a}/{b}#{c}", NAME, NAME, any_text(max_size=6) | st.integers()))


@given(text=NAME)
@example(text="a\n")
@examples(80)
def test_a_name_is_one_unquoted_argument_or_is_refused(text: str) -> None:
    name = accepted(lambda: check_name("pool", text))
    if isinstance(name, AllocatorError):
        return
    assert name == text
    assert shlex.quote(name) == name
    assert json.loads(json.dumps(name)) == name.encode("ascii").decode()
    assert pool_of_key(pool_key(name)) == name


@given(text=TEXTS)
@example(text="o/p#00001")
@examples(80)
def test_a_worker_reads_back_as_it_is_written_or_is_refused(text: str) -> None:
    worker = accepted(lambda: WorkerId.parse(text))
    if not isinstance(worker, AllocatorError):
        assert WorkerId.parse(str(worker)) == worker
        assert str(worker).isascii()
        for name in environment_names(worker.plugin):
            assert name.removesuffix("_PLUGIN_PORT").replace("_", "a").isalnum()


@given(text=any_text(max_size=60), number=st.one_of(st.integers(), st.booleans()))
@examples(80)
def test_addresses_ports_durations_and_tokens_are_right_or_are_refused(text: str, number: int) -> None:
    address = accepted(lambda: check_address(text))
    assert isinstance(address, AllocatorError) or accepted(lambda: check_address(address)) == address
    for value in (text, number):
        port = accepted(lambda value=value: check_port(value))
        assert isinstance(port, AllocatorError) or (1 <= port <= 65_535 and str(port) == str(value).lstrip("0"))
    duration = accepted(lambda: parse_duration_ms(text))
    assert isinstance(duration, AllocatorError) or parse_duration_ms(written_duration(duration)) == duration
    token = accepted(lambda: check_token(text))
    assert isinstance(token, AllocatorError) or int(token, 16) >= 0
    accepted(lambda: check_plugin(text))
    accepted(lambda: check_priority(number))
    accepted(lambda: make_session(text or None, text, "keep", advertise=text))


@given(seconds=st.floats() | st.integers())
@example(seconds=1e300)
@examples(80)
def test_a_ttl_is_right_or_is_refused(seconds: float) -> None:
    ttl_ms = accepted(lambda: ttl_in_ms(seconds))
    if not isinstance(ttl_ms, AllocatorError):
        accepted(lambda: PoolSpec(name="p", first=1, last=2).check_ttl_ms(ttl_ms))


@given(labels=st.dictionaries(NAME, any_text(max_size=300), max_size=20))
@examples(80)
def test_labels_are_right_or_are_refused(labels: dict[str, str]) -> None:
    kept = accepted(lambda: check_labels(labels))
    assert isinstance(kept, AllocatorError) or json.loads(json.dumps(kept)) == kept


@given(table=NAME, schema=st.none() | NAME, columns=st.dictionaries(NAME | st.sampled_from(["port", "host"]), NAME))
@examples(80)
def test_names_of_tables_are_right_or_are_refused(table: str, schema: str | None, columns: dict[str, str]) -> None:
    accepted(lambda: TableNames.checked(table, schema, columns))


@given(text=any_text(max_size=2_000))
@examples(80)
def test_a_reason_becomes_one_line(text: str) -> None:
    line = error_line(text)
    assert len(line) <= 500
    assert not line or line.isprintable()


@given(org=NAME, plugin=NAME, instance=st.integers(0, 99_999), pool=NAME, host=NAME)
@example(org="o.", plugin="p", instance=0, pool="p", host="h")
@example(org="o", plugin="@hay/plugin-email", instance=3, pool="p", host="h")
@example(org="a" * 128, plugin="@b/" + "b" * 211, instance=99_999, pool="c" * 128, host="d" * 128)
@example(org="a" * 128, plugin="b" * 128, instance=99_999, pool="c" * 128, host="d" * 128)
@examples(60)
def test_names_that_are_accepted_come_back_from_redis_events_and_files(
    store: ScriptedRedis,
    tmp_path_factory: pytest.TempPathFactory,
    org: str,
    plugin: str,
    instance: int,
    pool: str,
    host: str,
) -> None:
    def claimed() -> Any:
        context = make_context(check_name("host", host))
        worker = WorkerId(org, plugin, instance)
        store.drive(apply_pool(PoolSpec(name=pool, first=100, last=110)))
        return (
            context,
            worker,
            store.drive(claim(context, ClaimRequest(pool=pool, worker=worker, holder={"labels": {"a": "b"}}))),
        )

    store.client.flushall()
    result = accepted(claimed)
    if isinstance(result, AllocatorError):
        assert store.key_names() in ([], [pool_key(pool), f"{pool_key(pool)}:events", f"{pool_key(pool)}:history"])
        return
    context, worker, lease = result
    assert [one.worker for one in store.drive(listing.leases(pool))] == [worker]
    assert [one.name for one in store.drive(listing.hosts(pool))] == [host]
    assert {pool_of_key(key.partition("}")[0] + "}") for key in store.key_names()} == {pool}
    fields = store.events(pool)[-1]
    assert (fields["worker"], fields["host"]) == (str(worker), host)
    assert PoolEvent("1-0", fields).frame.count(b"\n") == 4
    assert store.drive(endpoints(pool, plugin, org)) == []
    files = LeaseFiles(tmp_path_factory.mktemp("leases"))
    files.save(lease)
    assert files.find(pool, host, worker) == lease
    assert json.loads(json.dumps(lease.as_json()))["org"] == org
    assert store.drive(release(context, [lease])) == [True]


@given(fields=st.dictionaries(st.sampled_from(["org", "plugin", "instance"]), any_json(), max_size=3))
@examples(60)
def test_a_worker_of_anything_but_names_is_refused(fields: dict[str, Any]) -> None:
    values = {"org": "o", "plugin": "p", "instance": 0} | fields
    if isinstance(values["org"], str) and isinstance(values["plugin"], str):
        accepted(lambda: WorkerId(**values))
