"""The rules of `allocator/protocol/lua/README.md`, held by reading the scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lua_names import undefined
from scripted_redis import claim, error_of, make_context

import allocator.protocol
from allocator.model.names import WorkerId
from allocator.operations.attempt import ClaimRequest
from allocator.protocol.replies import Reply
from allocator.protocol.wire import ScriptCall, assembled, script, script_keys, script_names

LUA = Path(allocator.protocol.__file__).parent / "lua"
FILES = sorted(LUA.rglob("*.lua"))
WRITES = "DEL|SET|HSET|HDEL|ZADD|ZREM|XADD|PEXPIRE|EXPIRE|INCR|HINCRBY|XTRIM|UNLINK|RENAME|SADD|SREM|LPUSH"
WRITING_CALL = re.compile(rf"(call|try|read)\(\s*'({WRITES})'")
RAISES = re.compile(r"\bread\(|\bbad\(|\brefuse\(|\berror\(|\b(lease_head|place_of|grant_of|rule_of)\(")


def code_of(file: Path) -> str:
    return re.sub(r"--(?!-? ?writes --|@include).*", "", file.read_text())


def by_name(files):
    return pytest.mark.parametrize("file", files, ids=lambda file: file.relative_to(LUA).as_posix())


def test_the_replies_are_the_same_codes_in_lua_and_python():
    text = re.findall(r"'(\w+)'", (LUA / "lib" / "replies.lua").read_text())
    names = re.findall(r"\b[A-Z][A-Z_]+\b", (LUA / "lib" / "replies.lua").read_text())
    assert sorted(text) == sorted(reply.value for reply in Reply)
    assert sorted(names) == sorted(reply.name for reply in Reply)


@by_name(sorted(LUA.glob("*.lua")))
def test_every_script_states_in_its_head_what_it_takes_answers_and_writes(file):
    head = file.read_text().split("\n\n--@include")[0].split("\n")
    assert head[0].startswith(f"-- {file.stem}: ")
    fields = {line.split()[1] for line in head if len(line.split()) > 1 and not line.startswith("--  ")}
    assert {"KEYS", "ARGV", "Replies", "Events", "Loops"} <= fields


@by_name(FILES)
def test_only_what_redis_6_and_valkey_and_fakeredis_all_run_is_used(file):
    code = code_of(file)
    assert "#!" not in code
    assert not re.search(r"\b(struct|bit|cmsgpack|cjson|os|io|math\.random|loadstring|setfenv)\b\.?[.(]", code)
    assert "sha1hex" not in code


@by_name(FILES)
def test_every_function_and_every_first_assignment_is_local(file):
    assert not re.search(r"(?m)^\s*function\b", code_of(file))


def functions_that_write():
    """Return the functions of the fragments that are given `call`, which writes."""
    text = "\n".join(file.read_text() for file in sorted((LUA / "lib").glob("*.lua")))
    return set(re.findall(r"local function (\w+)\((?:call|try)\b", text)) - {"held_before"}


def test_every_write_stands_below_the_line_and_nothing_there_can_stop_the_script():
    writers = re.compile(rf"\b({'|'.join(sorted(functions_that_write()))})\(")
    for name in script_names():
        code = re.sub(r"(?m)^\s*--(?! writes --).*$", "", (LUA / f"{name}.lua").read_text())
        checks, line, writes = code.partition("-- writes --")
        assert not WRITING_CALL.search(checks), name
        assert not writers.search(checks), (name, writers.search(checks))
        if not line:
            assert name in {"find", "inspect", "place"}
            continue
        # What is not read before it is written checks itself, and is taken back (see `end` and lib/leases.lua).
        writes = writes.replace("refuse(failed, failed_at)", "")
        assert not RAISES.search(writes), (name, RAISES.search(writes))
        assert not re.search(r"return \{ (HELD|TAKEN|EXHAUSTED|LOST)", writes)


def test_there_are_ten_fragments_at_most_and_each_is_functions_alone():
    fragments = sorted((LUA / "lib").glob("*.lua"))
    assert len(fragments) <= 10
    for file in fragments:
        top = re.sub(r"(?ms)^local function .*?^end$", "", re.sub(r"--.*", "", file.read_text()))
        assert not re.sub(r"(?m)^local [A-Z][A-Z0-9_, ]* = .*$", "", top).strip(), file.name


@by_name(FILES)
def test_no_file_uses_a_name_that_it_does_not_define_or_receive(file):
    assert not undefined(assembled(file.read_text()))


@pytest.mark.parametrize(
    ("lua", "names"),
    [
        ("local a = 1 return a", set()),
        ("local function f(x, ...) return x + y end return f", {"y"}),
        ("do local a = 1 end return a", {"a"}),
        ("for i, v in ipairs(ARGV) do redis.call(v, i) end return i", {"i"}),
        ("local t = { a = 1, [b] = 2 } return t.a", {"b"}),
        ("if x then local z = 1 else return z end", {"x", "z"}),
        ("local s = 'not -- a name' -- nor this\nreturn s:len()", set()),
    ],
)
def test_the_check_of_names_sees_what_is_defined_where(lua, names):
    assert undefined(lua) == names


def test_scripts_leave_no_global_behind(store):
    store.drive(claim(make_context(), ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p"))))
    source = "local n = 0 for _ in pairs(_G) do n = n + 1 end return n"
    before = store.client.eval(source, 0)
    for name in script_names():
        for _ in range(2):
            call = ScriptCall(name, script_keys("sdk-v2", "web-1"), ())
            assert "global" not in str(error_of(lambda call=call: store.run(call))).lower(), name
    store.drive(claim(make_context(), ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p", 1))))
    assert store.client.eval(source, 0) == before


def test_a_name_in_capitals_is_a_constant_that_the_loader_knows():
    for name in script_names():
        code = re.sub(r"'[^']*'", "''", script(name).source)
        code = re.sub(r"--.*", "", code)
        assert set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", code)) <= {"KEYS", "ARGV"}, name


def test_every_script_is_sent_without_its_comments_and_known_by_its_sha():
    for name in script_names():
        one = script(name)
        assert "--@" not in one.source
        assert one is script(name)
        assert re.fullmatch("[0-9a-f]{40}", one.sha1)
    with pytest.raises(FileNotFoundError):
        script("nothing")


def test_script_flush_is_not_noticed(store):
    context = make_context()
    store.drive(claim(context, ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p"))))
    store.client.script_flush()
    assert store.drive(claim(context, ClaimRequest(pool="sdk-v2", worker=WorkerId("o", "p", 1)))).port == 5570
