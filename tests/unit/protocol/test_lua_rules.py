"""The rules of `allocator/protocol/lua/README.md`, held by reading the scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripted_redis import error_of, make_context

import allocator.protocol
from allocator.model.names import WorkerId
from allocator.operations.claim import ClaimRequest, claim
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply
from allocator.protocol.scripts import script, script_names

LUA = Path(allocator.protocol.__file__).parent / "lua"
FILES = sorted(LUA.rglob("*.lua"))
WRITES = "DEL|SET|HSET|HDEL|ZADD|ZREM|XADD|PEXPIRE|EXPIRE|INCR|HINCRBY|XTRIM|UNLINK|RENAME|SADD|SREM|LPUSH"
WRITING_CALL = re.compile(rf"(call|try|read)\(\s*'({WRITES})'")
RAISES = re.compile(r"\bread\(|\bbad\(|\bnumber\(|\brefused\(|\berror\(")


def code_of(file: Path) -> str:
    return re.sub(r"--(?!-? ?writes --|@include).*", "", file.read_text())


def by_name(files):
    return pytest.mark.parametrize("file", files, ids=lambda file: file.relative_to(LUA).as_posix())


def test_the_replies_are_the_same_words_in_lua_and_python():
    words = re.findall(r"'(\w+)'", (LUA / "lib" / "replies.lua").read_text())
    names = re.findall(r"\b[A-Z][A-Z_]+\b", (LUA / "lib" / "replies.lua").read_text())
    assert sorted(words) == sorted(reply.value for reply in Reply)
    assert sorted(names) == sorted(reply.name for reply in Reply)


@by_name(sorted(LUA.glob("*.lua")))
def test_every_script_says_in_its_head_what_it_takes_answers_and_writes(file):
    head = file.read_text().split("\n\n--@include")[0].split("\n")
    assert head[0].startswith(f"-- {file.stem}: ")
    words = {line.split()[1] for line in head if len(line.split()) > 1 and not line.startswith("--  ")}
    assert {"KEYS", "ARGV", "Replies", "Events", "Loops"} <= words


@by_name(FILES)
def test_only_what_redis_6_and_valkey_and_fakeredis_all_run_is_used(file):
    code = code_of(file)
    assert "#!" not in code
    assert not re.search(r"\b(struct|bit|cmsgpack|cjson|os|io|math\.random|loadstring|setfenv)\b\.?[.(]", code)
    assert "sha1hex" not in code


@by_name(FILES)
def test_every_function_and_every_first_assignment_is_local(file):
    assert not re.search(r"(?m)^\s*function\b", code_of(file))


def test_every_write_stands_below_the_line_and_nothing_there_can_stop_the_script():
    for name in script_names():
        text = (LUA / f"{name}.lua").read_text()
        for fragment in re.findall(r"--@include (\w+)", text):
            if fragment == "endings":
                text = text.replace("--@include endings", (LUA / "lib" / "endings.lua").read_text())
        code = re.sub(r"(?m)^\s*--(?! writes --).*$", "", text)
        checks, line, writes = code.partition("-- writes --")
        assert not WRITING_CALL.search(checks), name
        if not line:
            assert name in {"find", "inspect", "place"}
            continue
        writes = writes.replace("refused(failed, failed_at)", "")  # see the fragment endings
        assert not RAISES.search(writes), (name, RAISES.search(writes))
        assert not re.search(r"return \{ (HELD|TAKEN|EXHAUSTED|LOST)", writes)


def test_a_fragment_that_writes_is_included_below_the_line_only():
    for name in script_names():
        checks = (LUA / f"{name}.lua").read_text().split("-- writes --")[0]
        assert not re.search(r"--@include (open|close|events|lease_text)\b", checks), name


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
