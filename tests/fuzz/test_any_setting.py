"""Any text as a URL or an environment variable, and anything in the state directory: used, or refused in one line."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fuzzing import accepted, any_bytes, any_text, argument_text, examples
from hypothesis import example, given
from hypothesis import strategies as st

from allocator import PortAllocator
from allocator.database.connection import Database
from allocator.database.urls import parse_database_url
from allocator.database.urls import redacted as redacted_database
from allocator.model.errors import AllocatorError, ConfigurationError, StoreUnavailableError
from allocator.model.redis_urls import StoreAddress, parse_store_url, redacted
from allocator.model.settings import NAMES, Settings, load_settings
from allocator.store.embedded import EmbeddedServer, EmbeddedStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "s3cr3t-w0rd"
_numbers = itertools.count()

PIECES = st.one_of(
    st.sampled_from(
        ["localhost", "127.0.0.1", "[::1]", ":6379", ":0", ":99999", ":x", "/0", "/x", "/99999", ",", "@", "?db=1", "&",
         "?db=x", "?ssl_ca_certs=/x", "?client_name=a", "#", "%", "%00", "%2F", "//", "mymaster", "/mymaster/0", "[",
         "]", "?sentinel_password=x", "[::", "/tmp/x.sock", "/", "user"]
    ),
    any_text(max_size=12),
)  # fmt: skip
REDIS_SCHEMES = st.sampled_from(
    ["redis", "rediss", "unix", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "REDIS"]
)
SQL_SCHEMES = st.sampled_from(["postgresql", "postgres", "postgresql+psycopg", "sqlite", "mysql", "SQLite"])
SQL_PIECES = st.one_of(
    PIECES,
    st.sampled_from(
        ["/db", "?sslmode=x", "?host=/nowhere", "?port=x", "?password=x", ":memory:", "?connect_timeout=x",
         "?options=-c", "?x=1&x=2", "?mode=ro&uri=true"]
    ),
)  # fmt: skip


@st.composite
def urls(draw: st.DrawFn, schemes: st.SearchStrategy[str], pieces: st.SearchStrategy[str]) -> tuple[str, bool]:
    """A URL of right and wrong pieces, and whether our secret stands in its password."""
    scheme = draw(st.one_of(schemes, schemes, any_text(max_size=10)))
    has_secret = draw(st.booleans())
    user = f"{draw(st.sampled_from(['', 'app']))}:{SECRET}@" if has_secret else ""
    return f"{scheme}{draw(st.sampled_from(['://', '://', '://', ':', '']))}{user}" + "".join(
        draw(st.lists(pieces, max_size=5))
    ), has_secret


@given(url=urls(REDIS_SCHEMES, PIECES))
@example(url=("unix:///%00", False))
@example(url=("redis+sentinel://%00/x", False))
@examples(200)
def test_a_redis_url_is_an_address_or_is_refused_without_its_secret(url: tuple[str, bool]) -> None:
    text, _ = url
    address = accepted(lambda: parse_store_url(text, environ={}))
    assert SECRET not in str(address)
    assert SECRET not in repr(address)
    assert SECRET not in redacted(text)
    assert redacted(text).isprintable()
    if isinstance(address, StoreAddress):
        assert "\0" not in (address.path or "")
        assert parse_store_url(address.shown, environ={}).nodes == address.nodes


@given(path=any_text(max_size=150).map(lambda text: text.replace("?", "").replace("#", "").replace("@", "")))
@example(path="%00")
@example(path="x" * 10_000)
@examples(20)
def test_a_unix_socket_of_any_name_is_away_or_refused(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    def ask() -> object:
        with PortAllocator.from_url(f"unix://{tmp_path_factory.getbasetemp()}/{path}", host="h", timeout=0.05) as ports:
            return ports.leases()

    assert isinstance(accepted(ask), AllocatorError)


@given(url=urls(SQL_SCHEMES, SQL_PIECES))
@example(url=("postgresql://%00", False))
@examples(150)
def test_a_database_url_is_read_or_is_refused_without_its_secret(url: tuple[str, bool]) -> None:
    text, _ = url
    found = accepted(lambda: parse_database_url(text))
    assert SECRET not in str(found)
    assert redacted_database(text).isprintable()
    if not isinstance(found, AllocatorError):
        assert SECRET not in redacted_database(text)


@given(url=urls(st.just("postgresql"), SQL_PIECES.filter(lambda piece: "." not in piece)), path=any_text(max_size=30))
@example(url=("postgresql://", False), path="\0")
@example(url=("postgresql://127.0.0.1:1/db?connect_timeout=x", False), path="x")
@examples(15)
def test_a_database_of_any_name_is_opened_or_refused(
    tmp_path_factory: pytest.TempPathFactory, url: tuple[str, bool], path: str
) -> None:
    directory = tmp_path_factory.getbasetemp() / f"sqlite-{next(_numbers)}"
    directory.mkdir()

    def opened(text: str) -> object:
        database = Database.open(text, timeout_s=0.05)
        try:
            with database.reading() as connection:
                return connection.exec_driver_sql("SELECT 1").scalar()
        finally:
            database.close()

    plain = path.replace("?", "").replace("/", "").replace("#", "").replace("%", "")
    accepted(lambda: opened(f"sqlite:///{directory}/{plain}"))
    if url[0].count("@127.0.0.1") + url[0].count("//127.0.0.1"):
        accepted(lambda: opened(url[0]))
    shutil.rmtree(directory)


VARIABLES = st.dictionaries(
    st.sampled_from([f"ALLOCATOR_{name.upper()}" for name in NAMES]
                    + ["ALLOCATOR_CONFIG", "ALLOCATOR_STATE_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME",
                       "ALLOCATOR_REDIS_PASSWORD", "ALLOCATOR_DATABASE_PASSWORD"]),
    argument_text(), max_size=6,
)  # fmt: skip


@given(environ=VARIABLES, flags=st.dictionaries(st.sampled_from(NAMES), st.none() | argument_text(), max_size=4))
@example(environ={"ALLOCATOR_CONNECT_TIMEOUT": "999999999999d"}, flags={})
@examples(150)
def test_any_variables_and_flags_are_settings_or_are_refused(environ: dict[str, str], flags: dict[str, str]) -> None:
    settings = accepted(lambda: load_settings(flags, environ))
    if isinstance(settings, Settings):
        accepted(lambda: settings.state_dir)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


NAMES_THERE = ["socket", "log", "server.lock", "start.lock", "appendonlydir", "dump.rdb"]


def path_of(server: EmbeddedServer, name: str) -> Path:
    return {"socket": server.socket, "log": server.log}.get(name, server.data_dir / name)


@given(
    what=st.lists(
        st.tuples(
            st.sampled_from(NAMES_THERE),
            st.sampled_from(["file", "directory", "link", "loop", "pipe"]),
            any_bytes(),
        ),
        min_size=1,
        max_size=3,
    )
)
@example(what=[("log", "pipe", b"")])
@example(what=[("dump.rdb", "directory", b"")])
@examples(8)
def test_what_stands_in_the_state_directory_is_refused_in_one_line_or_is_no_hindrance(states: Path, what: Any) -> None:
    server = EmbeddedServer(states / str(next(_numbers)), timeout_s=5.0)
    server.data_dir.mkdir(mode=0o700, parents=True)
    server.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, kind, content in what:
        put(path_of(server, name), kind, content)
    try:
        accepted(server.status)
        accepted(server.ensure)
    finally:
        there, stopped = accepted(server.status), accepted(server.stop)
        if isinstance(there, EmbeddedStatus) and isinstance(stopped, AllocatorError):  # it cannot save, and so goes on
            with contextlib.suppress(ProcessLookupError):
                os.kill(there.pid, signal.SIGKILL)
        shutil.rmtree(server.data_dir, ignore_errors=True)


def put(path: Path, kind: str, content: bytes) -> None:
    if os.path.lexists(path):
        return
    if kind == "file":
        path.write_bytes(content)
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else "/dev/null")


class Talker:
    """Somebody who has the embedded server's socket and gives one answer to whatever is said."""

    def __init__(self, path: Path) -> None:
        self.answer = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1_000)
                    connection.sendall(self.answer)
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    directory = tmp_path_factory.mktemp("t")
    directory.chmod(0o700)
    one = Talker(directory / "sock")
    one.path = directory / "sock"  # type: ignore[attr-defined]
    yield one
    one.close()


@given(
    answer=any_bytes() | st.sampled_from([b"$x\r\nabc", b"$99999999999\r\nabc", b"$-1\r\n", b"+PONG", b"-LOADING\r\n"])
)
@example(answer=b"$x\r\n")
@example(answer=b"$-5\r\n")
@examples(20)
def test_whoever_has_the_embedded_servers_socket_is_distinguished_from_it_in_one_line(
    talker: Any, answer: bytes
) -> None:
    from time import monotonic

    from allocator.store.embedded.reach import Reach, ask_whether_ready

    talker.answer = answer
    found = accepted(lambda: ask_whether_ready(talker.path, talker.path.parent / "log", monotonic() + 1))
    assert isinstance(found, Reach | ConfigurationError | StoreUnavailableError)
