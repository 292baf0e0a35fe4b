"""The promise: a call goes over a connection of its own that is whole, or ends in time with an error that says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import pytest
from servers import Server, client_of, installed, wait_until

from allocator import ConfigurationError, PortAllocator, StoreUnavailableError
from allocator.model.redis_urls import parse_store_url
from allocator.store.aio import AsyncStore
from allocator.store.blocking import Store
from allocator.store.direct import ConnectionOptions, ConnectionPool, ForeignReplyError, ReplyError
from allocator.store.direct_aio import AsyncConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from allocator.model.pools import PoolSpec

PATIENT_S = 20.0
"""For answers that come: a busy machine takes its time."""
IMPATIENT_S = 0.4
"""For answers that never come."""


class Blocking:
    """The blocking pool, as the tests call either."""

    def __init__(self, url: str, timeout_s: float = PATIENT_S) -> None:
        self.pool = ConnectionPool(ConnectionOptions(parse_store_url(url), timeout_s))

    def ask(self, *arguments: str | int) -> object:
        return self.pool.execute(*arguments)

    def together(self, *commands: tuple[str | int, ...]) -> list[object]:
        return self.pool.execute_together("", commands)

    def close(self) -> None:
        self.pool.close()


class Asyncio:
    """The asyncio pool, driven from outside of its loop."""

    def __init__(self, url: str, timeout_s: float = PATIENT_S) -> None:
        self.runner = asyncio.Runner()
        self.pool = AsyncConnectionPool(ConnectionOptions(parse_store_url(url), timeout_s))

    def ask(self, *arguments: str | int) -> object:
        return self.runner.run(self.pool.execute(*arguments))

    def together(self, *commands: tuple[str | int, ...]) -> list[object]:
        return self.runner.run(self.pool.execute_together("", commands))

    def close(self) -> None:
        self.runner.run(self.pool.close())
        self.runner.close()


Face = Blocking | Asyncio


@pytest.fixture(params=[Blocking, Asyncio], ids=["blocking", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., Face]]:
    """Makes a pool of connections to a URL, of both kinds in turn."""
    with contextlib.ExitStack() as stack:

        def make(url: str, timeout_s: float = PATIENT_S) -> Face:
            face: Face = request.param(url, timeout_s)
            stack.callback(face.close)
            return face

        yield make


class Scripted:
    """A server that answers each connection's commands as it is told, in a thread.

    Args:
        behave: Is called for each connection, with its number and its socket, after the greeting was answered.
        path: Where it listens; None for a TCP port.
        greets: Whether the greeting is answered.
    """

    def __init__(
        self, behave: Callable[[int, socket.socket], None], *, path: Path | None = None, greets: bool = True
    ) -> None:
        self.behave, self.greets, self.connections = behave, greets, 0
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(str(path) if path else ("127.0.0.1", 0))
        self._listener.listen(200)
        self.url = f"unix://{path}" if path else f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(self.connections, connection), daemon=True).start()

    def _serve(self, number: int, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self.greets:
                connection.recv(65_536)
                connection.sendall(b"+OK\r\n")
            self.behave(number, connection)
            self._ended.wait(60)


def answer_with(*pieces: bytes, then_close: bool = False) -> Callable[[int, socket.socket], None]:
    """Answer the first command of the first connection with some bytes, and all others with a whole answer."""

    def behave(number: int, connection: socket.socket) -> None:
        if number > 1:
            while connection.recv(65_536):
                connection.sendall(b"$5\r\nwhole\r\n")
            return
        connection.recv(65_536)
        for piece in pieces:
            connection.sendall(piece)
        if then_close:
            connection.close()

    return behave


# One call after the other


def test_one_connection_serves_one_call_after_the_other(opened, redis_url) -> None:
    face = opened(redis_url)
    assert len({face.ask("CLIENT", "ID") for _ in range(5)}) == 1


def test_an_error_answer_is_raised_and_spoils_nothing(opened, redis_url) -> None:
    face = opened(redis_url)
    before = face.ask("CLIENT", "ID")
    with pytest.raises(ReplyError, match="unknown command") as refused:
        face.ask("NO-SUCH-COMMAND")
    assert refused.value.code == "ERR"
    assert face.ask("CLIENT", "ID") == before


def test_commands_sent_together_are_answered_in_their_order_errors_included(opened, redis_url) -> None:
    face = opened(redis_url)
    first, second, third = face.together(("ECHO", "a"), ("EVALSHA", "0" * 40, 0), ("ECHO", "c"))
    assert (first, third) == (b"a", b"c")
    assert isinstance(second, ReplyError)
    assert second.code == "NOSCRIPT"


def test_large_commands_and_answers_pass_whole(opened, redis_url) -> None:
    face = opened(redis_url)
    text = "x" * 3_000_000
    assert face.ask("ECHO", text) == text.encode()
    assert face.ask("ECHO", "after it") == b"after it"


def test_an_argument_that_is_not_text_is_refused_before_anything_is_sent(opened, redis_url) -> None:
    face = opened(redis_url)
    before = face.ask("CLIENT", "ID")
    with pytest.raises(UnicodeEncodeError):
        face.ask("ECHO", "\ud800")
    assert face.ask("CLIENT", "ID") == before


def test_database_name_and_user_are_those_of_the_url(opened) -> None:
    with Server("--requirepass", "s3cret") as server:
        server.ready(password="s3cret")
        face = opened(f"redis://default:s3cret@127.0.0.1:{server.port}/3?client_name=mine")
        printed = face.ask("CLIENT", "INFO").decode()
        assert " db=3 " in printed
        assert " name=mine " in printed
        wrong = opened(f"redis://default:wrong@127.0.0.1:{server.port}")
        with pytest.raises(ReplyError) as refused:
            wrong.ask("PING")
        assert refused.value.code == "WRONGPASS"


# Answers that do not come, or not whole


@pytest.mark.parametrize(
    "pieces", [[], [b"$5\r\nhal"], [b"*2\r\n$1\r\na\r\n"], [b"$"]], ids=["none", "bulk", "list", "byte"]
)
def test_a_connection_that_ends_within_an_answer_is_an_error_and_not_used_again(opened, pieces) -> None:
    with Scripted(answer_with(*pieces, then_close=True)) as server:
        face = opened(server.url)
        with pytest.raises(ConnectionResetError):
            face.ask("GET", "a")
        assert face.ask("GET", "a") == b"whole"
        assert server.connections == 2


@pytest.mark.parametrize("pieces", [[], [b"$5\r\nhal"]], ids=["none", "half"])
def test_an_answer_that_does_not_come_ends_in_time_and_is_nobody_elses(opened, pieces) -> None:
    with Scripted(answer_with(*pieces)) as server:
        face = opened(server.url, IMPATIENT_S)
        with pytest.raises(TimeoutError):
            face.ask("GET", "a")
        assert face.ask("GET", "a") == b"whole"
        assert server.connections == 2


def test_an_answer_that_trickles_ends_at_the_deadline_of_the_whole(opened) -> None:
    stopped = threading.Event()

    def trickle(number: int, connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"$1000000\r\n")
        while not stopped.wait(0.05):  # each piece comes well within the time
            connection.sendall(b"x")

    with Scripted(trickle) as server:
        face = opened(server.url, IMPATIENT_S)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="did not end in time"):
            face.ask("GET", "a")
        assert time.monotonic() - began < 15
        stopped.set()


def test_more_answers_than_questions_spoil_the_connection(opened) -> None:
    with Scripted(answer_with(b"$3\r\none\r\n$3\r\ntwo\r\n")) as server:
        face = opened(server.url)
        assert face.ask("GET", "a") == b"one"
        assert face.ask("GET", "a") == b"whole"
        assert server.connections == 2


def test_an_answer_that_comes_after_its_call_gave_up_is_nobody_elses(opened, redis_url) -> None:
    face = opened(redis_url, IMPATIENT_S)
    with pytest.raises(TimeoutError):
        face.ask("BLPOP", "connections:nothing", 1)
    assert face.ask("ECHO", "mine") == b"mine"


def test_a_server_that_is_no_redis_is_called_that(opened) -> None:
    with Scripted(answer_with(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server, pytest.raises(ForeignReplyError):
        opened(server.url).ask("GET", "a")
    with Scripted(lambda _number, one: one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), greets=False) as server:
        store = Store.open(server.url)
        with pytest.raises(ConfigurationError, match="not a Redis"):
            store.server_time()


def test_a_server_that_takes_connections_and_sends_nothing_is_silent_in_time(opened) -> None:
    with Scripted(lambda _number, _connection: None, greets=False) as server, pytest.raises(TimeoutError):
        opened(server.url, IMPATIENT_S).ask("PING")


def test_a_command_that_the_server_does_not_take_ends_in_time(opened) -> None:
    with Scripted(lambda _number, _connection: None) as server, pytest.raises(TimeoutError):
        opened(server.url, IMPATIENT_S).ask("SET", "a", "x" * 50_000_000)


# Servers that go and come


def test_a_connection_that_the_server_has_closed_is_not_used_again(opened, redis_url, ports) -> None:
    face = opened(redis_url)
    before = face.ask("CLIENT", "ID")
    assert client_of(ports.store).client_kill_filter(_id=str(before)) == 1
    assert face.ask("CLIENT", "ID") != before


def test_a_server_restarted_between_two_calls_is_not_noticed(opened) -> None:
    with Server() as server:
        server.ready()
        face = opened(server.url)
        assert face.ask("ECHO", "before") == b"before"
        server.crash()
        server.start()
        server.ready()
        assert face.ask("ECHO", "after") == b"after"


def test_a_unix_socket_that_is_replaced_leads_to_the_new_server(opened, tmp_path) -> None:
    path = tmp_path / "redis.sock"
    with Scripted(answer_with(b"$3\r\nold\r\n"), path=path) as old:
        face = opened(old.url)
        assert face.ask("GET", "a") == b"old"
    path.unlink()
    with Scripted(answer_with(b"$3\r\nnew\r\n"), path=path):
        with contextlib.suppress(OSError):  # the old server may still have the connection
            while face.ask("GET", "a") != b"new":
                pass
        path.unlink()
    with pytest.raises(FileNotFoundError):
        opened(f"unix://{path}").ask("GET", "a")


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (b"-LOADING Redis is loading the dataset in memory", StoreUnavailableError, "LOADING"),
        (b"-READONLY You can't write against a read only replica.", StoreUnavailableError, "READONLY"),
        (b"-MOVED 1 127.0.0.1:1", StoreUnavailableError, "MOVED"),
        (b"-MASTERDOWN Link with MASTER is down", StoreUnavailableError, "MASTERDOWN"),
        (b"-BUSY Redis is busy running a script", StoreUnavailableError, "BUSY"),
        (b"-ERR max number of clients reached", StoreUnavailableError, "max number"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailableError, "maxmemory"),
        (b"-MISCONF Redis is configured to save RDB snapshots", StoreUnavailableError, "disk"),
        (b"-NOAUTH Authentication required.", ConfigurationError, "password"),
        (b"-NOPERM this user has no permissions", ConfigurationError, "users.acl"),
        (b"-WRONGTYPE Operation against a key", ConfigurationError, "wrong type"),
        (b"-ERR unknown command 'TIME'", ConfigurationError, "6.2"),
    ],
)
def test_error_replies_become_the_errors_that_they_mean(reply, kind, text) -> None:
    def behave(_number: int, connection: socket.socket) -> None:
        while connection.recv(65_536):
            connection.sendall(reply + b"\r\n")

    with Scripted(behave) as server:
        store = Store.open(server.url, timeout_s=IMPATIENT_S)
        with pytest.raises(kind, match=text):
            store.read_text("a")


# TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Iterator[tuple[Server, Path]]:
    """A server that speaks TLS only, and the certificate of its authority."""
    binary = installed("redis-server")
    if binary is None or installed("openssl") is None:
        pytest.skip("no redis-server with TLS, or no openssl, is installed here")
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out",
         "cert.pem", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=directory, check=True, capture_output=True,
    )  # fmt: skip
    arguments = ("--tls-cert-file", f"{directory}/cert.pem", "--tls-key-file", f"{directory}/key.pem")
    with Server(binary=binary) as plain:
        plain.crash()
        port = plain.port
        more = ("--port", "0", "--tls-port", str(port), *arguments, "--tls-auth-clients", "no")
        with Server(*more, binary=binary) as server:
            server.port = port
            if server.process.poll() is not None:
                pytest.skip("this redis-server has no TLS")
            wait_until(
                lambda: server.client(ssl=True, ssl_ca_certs=f"{directory}/cert.pem").ping(), "no server with TLS"
            )
            yield server, directory / "cert.pem"


def test_tls_is_spoken_and_the_certificate_checked(opened, tls) -> None:
    server, certificate = tls
    where = f"rediss://127.0.0.1:{server.port}"
    face = opened(f"{where}?ssl_ca_certs={certificate}")
    assert len({face.ask("CLIENT", "ID") for _ in range(3)}) == 1
    text = "x" * 300_000
    assert face.ask("ECHO", text) == text.encode()
    assert opened(f"{where}?ssl_cert_reqs=none&ssl_check_hostname=no").ask("ECHO", "a") == b"a"
    for url in (where, f"rediss://localhost:{server.port}?ssl_ca_certs={certificate}"):
        with contextlib.closing(Store.open(url)) as store, pytest.raises(ConfigurationError, match="TLS failed"):
            store.server_time()


def test_a_certificate_file_that_is_not_there_is_named_as_the_cause(tls) -> None:
    server, certificate = tls
    url = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={certificate}.gone"
    with (
        contextlib.closing(Store.open(url)) as store,
        pytest.raises(ConfigurationError, match="or key cannot"),
    ):
        store.server_time()


def test_a_tls_connection_that_the_server_has_closed_is_not_used_again(opened, tls) -> None:
    server, certificate = tls
    face = opened(f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={certificate}")
    before = face.ask("CLIENT", "ID")
    with server.client(ssl=True, ssl_ca_certs=str(certificate)) as client:
        client.client_kill_filter(_id=str(before))
    with contextlib.suppress(ConnectionResetError):  # the event loop hears of it a moment later
        assert face.ask("CLIENT", "ID") != before
    assert face.ask("CLIENT", "ID") != before


def test_a_tls_handshake_that_stalls_ends_in_time(opened) -> None:
    with Scripted(lambda _number, _connection: None, greets=False) as server, pytest.raises(TimeoutError):
        opened(server.url.replace("redis://", "rediss://"), IMPATIENT_S).ask("PING")


def test_leases_over_tls(tls) -> None:
    server, certificate = tls
    url = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={certificate}"
    with PortAllocator.from_url(url, host="web-1", timeout=PATIENT_S) as ports:
        assert ports.release(ports.claim("email", org="o"))


# Threads, forks, loops


def test_a_hundred_threads_that_call_at_once_each_have_their_own_answers(redis_url) -> None:
    face, together = Blocking(redis_url), threading.Barrier(100)

    def report(number: int) -> list[object]:
        together.wait(PATIENT_S)
        return [face.ask("ECHO", f"{number}-{at}") for at in range(20)]

    with ThreadPoolExecutor(100) as pool:
        for number, printed in enumerate(pool.map(report, range(100))):
            assert printed == [f"{number}-{at}".encode() for at in range(20)]
    face.close()


def test_a_hundred_tasks_that_call_at_once_each_have_their_own_answers(redis_url) -> None:
    async def report() -> None:
        pool = AsyncConnectionPool(ConnectionOptions(parse_store_url(redis_url), PATIENT_S))
        printed = await asyncio.gather(*(pool.execute("ECHO", str(number)) for number in range(100)))
        assert printed == [str(number).encode() for number in range(100)]
        await pool.close()

    asyncio.run(report())


def test_a_cancelled_call_leaves_no_answer_behind(redis_url) -> None:
    async def cancel() -> None:
        pool = AsyncConnectionPool(ConnectionOptions(parse_store_url(redis_url), PATIENT_S))
        await pool.execute("PING")
        waiting = asyncio.create_task(pool.execute("BLPOP", "connections:nothing", 1))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await pool.execute("ECHO", "mine") == b"mine"
        await pool.close()

    asyncio.run(cancel())


def test_a_forked_process_makes_its_own_connection_and_leaves_its_parents_alone(redis_url) -> None:
    face = Blocking(redis_url)
    mine = face.ask("CLIENT", "ID")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(face.ask("CLIENT", "ID")).encode())
        face.close()
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as printed:
        assert int(printed.read()) != mine
    assert face.ask("CLIENT", "ID") == mine
    face.close()


def test_a_loop_forked_while_connected_makes_its_own_connection(redis_url) -> None:
    program = f"""
import asyncio, os
from allocator.store.direct import ConnectionOptions
from allocator.store.direct_aio import AsyncConnectionPool
from allocator.model.redis_urls import parse_store_url
pool = AsyncConnectionPool(ConnectionOptions(parse_store_url({redis_url!r}), 20))
async def mine(): return await pool.execute("CLIENT", "ID")
with asyncio.Runner() as runner:
    first = runner.run(mine())
    child = os.fork()
    if child == 0:
        other = asyncio.new_event_loop()
        asyncio.set_event_loop(other)
        asyncio.events._set_running_loop(None)
        os._exit(0 if other.run_until_complete(mine()) != first else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert runner.run(mine()) == first
    runner.run(pool.close())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_store_is_used_by_one_event_loop_after_the_other(redis_url: str, pool: PoolSpec) -> None:
    program = f"""
import asyncio
from allocator import AsyncPortAllocator
ports = AsyncPortAllocator.from_url({redis_url!r}, pool={pool.name!r}, host="web-1")
async def claim(): assert await ports.release(await ports.claim("email", org="o"))
for part in (claim, claim, ports.close): asyncio.run(part())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_closed_store_begins_again_when_it_is_used(redis_url: str) -> None:
    store = Store.open(redis_url)
    with contextlib.closing(store):
        assert store.server_time() > 0
    assert "not connected" in repr(store)
    with contextlib.closing(store):
        assert store.server_time() > 0


def test_a_claim_after_the_server_has_closed_all_connections_is_like_any_other(
    ports: PortAllocator, pool: PoolSpec
) -> None:
    lease, client = ports.claim("email", org="org-1"), client_of(ports.store)
    for one in client.client_list():
        if one["name"] == "portlease":
            client.client_kill_filter(_id=one["id"])
    assert ports.release(lease) is True
    assert pool.first <= ports.claim("email", org="org-1").port <= pool.last


# What is imported


@pytest.mark.parametrize("face", ["PortAllocator", "AsyncPortAllocator"])
def test_one_server_needs_no_redis_py(redis_url: str, pool: PoolSpec, face: str) -> None:
    body = """
import asyncio, inspect, sys
import allocator
ports = allocator.%s.from_url(%r, pool=%r, host="web-1")
async def use():
    lease = ports.claim("email", org="o")
    lease = await lease if inspect.isawaitable(lease) else lease
    done = ports.release(lease)
    assert (await done if inspect.isawaitable(done) else done)
    closed = ports.close()
    await closed if inspect.isawaitable(closed) else closed
asyncio.run(use())
assert not [name for name in sys.modules if name.partition(".")[0] == "redis"]
""" % (face, redis_url, pool.name)  # noqa: UP031  # braces stand in the program
    subprocess.run([sys.executable, "-c", body], check=True, timeout=60)


def test_calls_that_connect_at_the_same_time_leave_no_connection_open() -> None:
    async def call(url: str) -> None:
        store = AsyncStore.open(url)
        await asyncio.gather(*(store.newest_events(f"stream-{number}", 1) for number in range(10)))
        await store.close()

    with Server() as server:
        url = server.ready().url
        asyncio.run(call(url))
        with contextlib.closing(Store.open(url)) as store:
            wait_until(lambda: len(client_of(store).client_list()) == 1, "the calls' connections are closed")
