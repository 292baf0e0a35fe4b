"""Every mistake that a person can make is one line with the right exit code, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import redis
from servers import Server, client_of, wait_until

if TYPE_CHECKING:
    from conftest import Allocator

    from allocator import PoolSpec, PortAllocator

CLAIM = ("claim", "email", "--org", "o")
ARGUMENTS = [
    (("claim", "email", "--org", "a:b"), "organisation"),
    (("claim", "email", "--org", "a b"), "organisation"),
    (("claim", "email", "--org", "a\x07b"), "organisation"),
    (("claim", "email", "--org", "é"), "organisation"),
    (("claim", "email", "--org", ""), "organisation name is empty"),
    (("claim", "email", "--org", "x" * 10_000), "10000 characters"),
    (("claim", "e{}", "--org", "o"), "plugin"),
    (("claim", "email"), "--org"),
    ((*CLAIM, "--instance", "-1"), "instance"),
    ((*CLAIM, "--instance", "1e3"), "instance"),
    ((*CLAIM, "--port", "0"), "not a port"),
    ((*CLAIM, "--port", "-1"), "not a port"),
    ((*CLAIM, "--port", "65536"), "not a port"),
    ((*CLAIM, "--port", "abc"), "not a port"),
    ((*CLAIM, "--port", "80"), "outside pool"),
    ((*CLAIM, "--ttl", "0s"), "TTL"),
    ((*CLAIM, "--ttl", "-5s"), "TTL"),
    ((*CLAIM, "--ttl", "5 parsecs"), "TTL"),
    ((*CLAIM, "--ttl", "48h"), "TTL"),
    ((*CLAIM, "--wait", "soon"), "wait"),
    ((*CLAIM, "--label", "=x"), "label"),
    ((*CLAIM, "--pid", "999999999"), "pid"),
    ((*CLAIM, "--token", "secret"), "token"),
    ((*CLAIM, "--format", "xml"), "xml"),
    ((*CLAIM, "--pool", "a b"), "pool"),
    ((*CLAIM, "--host", "a b"), "host"),
    ((*CLAIM, "--nope"), "--nope"),
    (("renew",), "--all"),
    (("renew", "5556", "--all"), "--all"),
    (("release", "70000"), "not a port"),
    (("release", "o/e/x"), "plugin"),
    (("renew", "1", "--every", "1ms"), "interval"),
    (("show", "o/"), "plugin"),
    (("events", "--count", "0"), "--count"),
    (("host", "cordon", "nowhere"), "nowhere"),
    (("run", "email", "--org", "o", "--", "sh", "-c", "{nope}"), "template"),
    (("nope",), "nope"),
    (("x" * 10_000,), "No such command"),
    (("claim", "--" + "x" * 10_000), "No such option"),
    (("ls", "a\x07b\nc"), "unexpected extra argument(s) (a b c)"),
    ((*CLAIM, "\udcff"), "unexpected extra argument"),
    (("--format", "json", "ls"), "No such option"),
    (("embedded", "start"), "Did you mean 'status'? See 'allocator embedded --help'"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=lambda value: " ".join(value)[:40])
def test_a_wrong_argument_is_one_line_and_exit_2(
    allocator: Allocator, arguments: tuple[str, ...], message: str
) -> None:
    done = allocator(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert len(done.err) < 500
    assert done.err.rstrip("\n").isprintable()
    assert json.loads(allocator("ls", "--format", "json").out) == []


POOL = '[pool]\nname = "p"\nfirst = 6000\nlast = 6010\n'
FILES = [
    (POOL.replace("6010", "5000"), "not a port range"),
    (POOL.replace("6000", "0"), "not a port range"),
    (POOL + "colour = 'red'\n", "colour"),
    (POOL + "[pool.conventional]\nemail = 6000\nstripe = 6000\n", "both email and stripe"),
    (POOL + "[pool.conventional]\nemail = 7000\n", "outside"),
    (POOL + "ttl = '5 parsecs'\n", "parsecs"),
    (POOL + "ttl = '0s'\n", "out of order"),
    (POOL + "scope = 'world'\n", "scope"),
    (POOL.replace("6000", '"6000"'), "first"),
    (POOL.replace('"p"', '"a b"'), "pool name"),
    ("[pool\n", "TOML"),
    ("", "pool"),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[message for _, message in FILES])
def test_a_wrong_pool_file_is_one_line_and_exit_78(allocator: Allocator, text: str, message: str) -> None:
    done = allocator("pool", "apply", "-", input=text)
    assert (done.code, done.out) == (78, "")
    assert message in done.err
    assert "standard input" in done.err
    assert done.err.count("\n") == 1


def test_settings_files_are_checked(allocator: Allocator) -> None:
    (allocator.state / "allocator.toml").write_text("redis_ulr = 'x'\n")
    done = allocator("ls")
    assert done.code == 78
    assert "redis_ulr" in done.err
    missing = allocator("ls", "--config", "nowhere.toml")
    assert missing.code == 78
    assert "nowhere.toml" in missing.err


def test_flags_go_before_the_environment_and_that_before_the_file(allocator: Allocator, pool: PoolSpec) -> None:
    (allocator.state / "allocator.toml").write_text("host = 'from-file'\n")
    variables = {name: value for name, value in allocator.variables.items() if name != "ALLOCATOR_HOST"}
    plain = type(allocator)(allocator.state, variables)

    def host(*arguments: str, **more: str) -> str:
        done = plain("claim", "email", "--org", f"o{len(arguments)}{len(more)}", "--format", "json", *arguments, **more)
        return json.loads(done.out)["host"]

    assert host() == "from-file"
    assert host(ALLOCATOR_HOST="from-environment") == "from-environment"
    assert host("--host", "from-flag", ALLOCATOR_HOST="from-environment") == "from-flag"


def test_an_unreachable_redis_is_exit_69(allocator: Allocator) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://:secret@127.0.0.1:{closed.getsockname()[1]}"
        done = allocator(*CLAIM, "--redis-url", url)
    assert done.code == 69
    assert "--redis-url" in done.err
    assert "secret" not in done.err


def test_a_server_that_never_answers_is_exit_69(allocator: Allocator) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        done = allocator(*CLAIM, "--redis-url", url, ALLOCATOR_CONNECT_TIMEOUT="500ms")
    assert done.code == 69


def test_a_server_that_is_not_redis_is_exit_78(allocator: Allocator) -> None:
    with socket.socket() as web:
        web.bind(("127.0.0.1", 0))
        web.listen()

        def answer() -> None:
            connection, _ = web.accept()
            with connection:
                connection.recv(1_000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        done = allocator(*CLAIM, "--redis-url", f"redis://127.0.0.1:{web.getsockname()[1]}")
    assert done.code == 78
    assert "not a Redis" in done.err


def test_a_key_of_the_wrong_type_is_named(allocator: Allocator, pool: PoolSpec, ports: PortAllocator) -> None:
    client = client_of(ports.store)
    key = f"alloc:{{{pool.name}}}:ports:web-1"
    client.set(key, "something else")
    done = allocator(*CLAIM)
    assert done.code == 78
    assert key in done.err
    assert client.get(key) == b"something else"
    client.delete(key)


def test_a_url_that_is_none_is_exit_78(allocator: Allocator) -> None:
    done = allocator(*CLAIM, "--redis-url", "http://:secret@localhost")
    assert done.code == 78
    assert "secret" not in done.err


def test_a_server_that_wants_another_password_is_exit_78(allocator: Allocator) -> None:
    with Server("--requirepass", "s3cret:/@ word%") as server:
        server.ready(password="s3cret:/@ word%")
        written = server.url.replace("//", "//:s3cret%3A%2F%40%20word%25@")
        assert allocator("ls", "--redis-url", written, "--pool", "sdk-v2").code == 0
        asked = ("ls", "--redis-url", server.url, "--pool", "sdk-v2")
        assert allocator(*asked, ALLOCATOR_REDIS_PASSWORD="s3cret:/@ word%").code == 0
        for url in (server.url, server.url.replace("//", "//:wr0ng@"), server.url.replace("//", "//:s3cret:/@ word%@")):
            done = allocator(*CLAIM, "--redis-url", url)
            assert (done.code, done.out, done.err.count("\n")) == (78, "", 1)
            assert "s3cret" not in done.err
            assert "wr0ng" not in done.err


def test_a_server_that_evicts_is_exit_78(allocator: Allocator) -> None:
    with Server("--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl") as server:
        server.ready()
        done = allocator(*CLAIM, "--redis-url", server.url, "--pool", "sdk-v2")
        assert (done.code, done.out, done.err.count("\n")) == (78, "", 1)
        assert "set maxmemory-policy noeviction" in done.err
        assert server.client().dbsize() == 0


def test_a_server_without_memory_is_exit_69_and_nothing_is_half_done(allocator: Allocator) -> None:
    with Server() as server:
        server.ready()
        at = ("--redis-url", server.url, "--pool", "sdk-v2")
        port = allocator(*CLAIM, *at).out.strip()
        server.client().config_set("maxmemory", "1")
        before = allocator("ls", "--format", "json", *at).out
        keys = sorted(server.client().keys())
        done = allocator("claim", "stripe", "--org", "o", *at)
        assert (done.code, done.out, done.err.count("\n")) == (69, "", 1)
        assert "no memory left" in done.err
        assert allocator("ls", "--format", "json", *at).out == before
        assert sorted(server.client().keys()) == keys
        server.client().config_set("maxmemory", "0")
        assert allocator("claim", "stripe", "--org", "o", *at).code == 0
        assert allocator("release", port, *at).code == 0


def test_a_server_in_a_long_script_is_exit_69(allocator: Allocator) -> None:
    with Server() as server:
        server.ready()
        server.client().config_set("lua-time-limit", "50")
        busy = threading.Thread(target=spin, args=(server,))
        busy.start()
        try:
            wait_until(lambda: "BUSY" in refusal(server), "the script did not begin")
            done = allocator("ls", "--redis-url", server.url, ALLOCATOR_CONNECT_TIMEOUT="300ms")
        finally:
            server.client().script_kill()
            busy.join()
    assert (done.code, done.out, done.err.count("\n")) == (69, "", 1)
    assert "busy" in done.err


def spin(server: Server) -> None:
    with contextlib.suppress(redis.RedisError):
        server.client(socket_timeout=None).eval("while true do end", 0)


def refusal(server: Server) -> str:
    try:
        server.client().ping()
    except redis.RedisError as error:
        return f"BUSY {error}"
    return ""


@pytest.mark.parametrize(("key", "arguments"), [("events", ("events",)), ("hosts", ("host", "ls"))])
def test_what_another_program_wrote_is_named_by_its_key(
    allocator: Allocator, pool: PoolSpec, ports: PortAllocator, key: str, arguments: tuple[str, ...]
) -> None:
    allocator(*CLAIM)
    client = client_of(ports.store)
    name = f"alloc:{{{pool.name}}}:{key}"
    client.set(name, "something else")
    done = allocator(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (78, "", 1)
    assert name in done.err
    assert client.get(name) == b"something else"
    client.delete(name)


def test_a_lease_that_another_program_wrote_is_passed_over_by_listings_and_named_by_doctor(
    allocator: Allocator, pool: PoolSpec, ports: PortAllocator
) -> None:
    port = allocator(*CLAIM).out.strip()
    other = allocator("claim", "stripe", "--org", "o").out.strip()
    name = f"alloc:{{{pool.name}}}:lease:web-1:{port}"
    client_of(ports.store).set(name, "something else")
    assert [lease["port"] for lease in json.loads(allocator("ls", "--format", "json").out)] == [int(other)]
    assert name in allocator("doctor").out
    client_of(ports.store).delete(name)


@pytest.mark.parametrize("arguments", [("ls",), ("events",), ("host", "ls"), ("pool", "show", "nowhere")])
def test_a_pool_that_does_not_exist_is_no_empty_list(allocator: Allocator, arguments: tuple[str, ...]) -> None:
    address = () if "show" in arguments else ("--pool", "nowhere")
    done = allocator(*arguments, *address)
    assert (done.code, done.out, done.err.count("\n")) == (78, "", 1)
    assert "pool nowhere is not defined" in done.err
    assert allocator("ls", "--pool", "sdk-v2").code == 0


def test_the_version_is_printed(allocator: Allocator) -> None:
    done = allocator("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("portlease ")
