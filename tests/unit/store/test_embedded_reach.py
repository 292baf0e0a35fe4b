"""What the embedded server's socket may answer, and what each answer is taken for."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest

from allocator.model.errors import ConfigurationError, StoreUnavailableError
from allocator.store.embedded import EmbeddedServer, reach
from allocator.store.embedded.reach import Reach, ask_whether_ready, is_private, socket_path, socket_url


class Impostor:
    """Answers each connection with the next of its replies, the last one for ever."""

    def __init__(self, path: Path, replies: list[bytes]) -> None:
        self.asked: list[bytes] = []
        self._replies = replies
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection:
                asked = connection.recv(100)
                if asked == b"END":
                    return
                self.asked.append(asked)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it asked, and did not wait
                    for piece in self._next().split(b"|"):
                        connection.sendall(piece)

    def _next(self) -> bytes:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._listening.getsockname())
            last.sendall(b"END")
        self._thread.join()
        self._listening.close()


@pytest.fixture
def site():
    with tempfile.TemporaryDirectory(prefix="emb-") as directory:  # 0700, and short enough for a socket
        (Path(directory) / "embedded").mkdir(mode=0o700)
        yield Path(directory) / "embedded"


@pytest.fixture
def answering(site):
    made = []

    def answer(*replies: bytes) -> Impostor:
        made.append(Impostor(site / "server.sock", list(replies)))
        return made[-1]

    yield answer
    for impostor in made:
        impostor.close()


def ask(site: Path, limit_s: float = 10) -> Reach:
    return ask_whether_ready(site / "server.sock", site / "server.log", time.monotonic() + limit_s)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"+PONG\r\n", Reach.READY),
        (b"+PO|NG\r|\n", Reach.READY),
        (b"-LOADING Valkey is loading the dataset in memory\r\n", Reach.BUSY),
        (b"-BUSY Valkey is busy running a script\r\n", Reach.BUSY),
        (b"", Reach.ABSENT),
        (b"+PON", Reach.ABSENT),
    ],
)
def test_what_an_answer_is_taken_for(site, answering, reply, expected):
    impostor = answering(reply)
    assert ask(site) is expected
    assert impostor.asked == [b"PING\r\n"]


def test_nobody_there_is_absent_whether_the_socket_file_is_missing_or_stale(site):
    assert ask(site) is Reach.ABSENT
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(site / "server.sock"))
    assert (site / "server.sock").exists()
    assert ask(site) is Reach.ABSENT


def test_a_disk_that_refuses_writes_is_a_configuration_error(site, answering):
    answering(b"-MISCONF Errors writing to the AOF file: No space left on device\r\n")
    with pytest.raises(ConfigurationError, match=r"No space left on device.*; free some space"):
        ask(site)


def test_any_other_refusal_is_unavailable_and_quoted(site, answering):
    answering(b"-ERR max number of clients reached\r\n")
    with pytest.raises(StoreUnavailableError, match=r"max number of clients reached.*; see .*server\.log"):
        ask(site)


def test_a_listener_that_never_answers_is_unavailable(site):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(site / "server.sock"))
        mute.listen()
        with pytest.raises(StoreUnavailableError, match="took the connection and did not answer"):
            ask(site, limit_s=0.05)


@pytest.mark.parametrize("looks", range(3))
def test_time_that_runs_out_before_anybody_was_reached_is_no_silence(site, monkeypatch, looks):
    clock = chain([0.0] * looks, repeat(2.0))
    monkeypatch.setattr(reach, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert ask_whether_ready(site / "server.sock", site / "server.log", 1.0) is not Reach.READY


def test_a_socket_in_a_directory_that_others_can_enter_is_not_asked(site, answering):
    impostor = answering(b"+PONG\r\n")
    site.chmod(0o711)
    assert ask(site) is Reach.ABSENT
    assert impostor.asked == []
    site.chmod(0o700)


def test_a_server_that_is_loading_is_waited_for(site, answering):
    import fcntl

    impostor = answering(b"-LOADING\r\n", b"-LOADING\r\n", b"-LOADING\r\n", b"+PONG\r\n")
    server = EmbeddedServer(site.parent)
    with (site / "server.lock").open("w") as alive:  # what a living server holds: no other one may be started
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert server.ensure() == server.url
    assert len(impostor.asked) == 4
    assert not (site / "server.pid").exists()


def test_a_server_that_never_stops_loading_is_unavailable_with_the_logs_last_line(site, answering):
    import fcntl

    answering(b"-LOADING\r\n")
    (site / "server.log").write_text("7:M 24 Nov 2026 11:18:43.422 * Reading RDB base file on AOF loading...\n\n")
    with (site / "server.lock").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailableError, match=r"\(Reading RDB base file on AOF loading\.\.\.\)") as caught:
            EmbeddedServer(site.parent, timeout_s=2.0).ensure()
    assert "\n" not in str(caught.value)


def test_status_of_something_that_speaks_otherwise_is_none(site, answering):
    answering(b"$7\r\nhello\r\n\r\n", b"-ERR\r\n", b"$100\r\nshort\r\n", b"")
    server = EmbeddedServer(site.parent)
    assert [server.status() for _ in range(4)] == [None] * 4


def test_status_reads_redis_as_well_as_valkey_and_shows_what_is_not_persisted(site, answering):
    info = (
        b"# Server\r\nredis_version:7.0.15\r\nprocess_id:5\r\nused_memory:9\r\nuptime_in_seconds:3\r\naof_enabled:1\r\n"
    )
    info += b"aof_last_write_status:err\r\n"
    answering(b"$%d\r\n|%b\r\n" % (len(info), info))
    status = EmbeddedServer(site.parent).status()
    assert status is not None
    assert (status.version, status.memory_bytes, status.uptime_s, status.persistent) == ("redis 7.0.15", 9, 3, False)


def test_the_socket_is_beside_the_data_until_its_path_is_too_long():
    longest = reach.MAX_SOCKET_PATH - len("//x/server.sock")
    beside = Path("/" + "d" * longest + "/x")
    assert socket_path(beside) == beside / "server.sock"
    elsewhere = socket_path(Path(f"{beside}x"))
    assert elsewhere.parent.parent == Path("/tmp")
    assert elsewhere == socket_path(Path(f"{beside}x"))
    assert elsewhere != socket_path(Path(f"{beside}y"))
    assert f"-{os.geteuid()}-" in elsewhere.parent.name


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/run/a-b/server.sock", "unix:///run/a-b/server.sock"),
        ("/with space/100%/s", "unix:///with%20space/100%25/s"),
        ("/straße?x#y", "unix:///stra%C3%9Fe%3Fx%23y"),
    ],
)
def test_a_url_quotes_what_a_url_must(path, url):
    assert socket_url(Path(path)) == url


def test_only_a_directory_of_ours_that_nobody_else_can_enter_is_private(site):
    assert is_private(site)
    (site / "link").symlink_to(site)
    (site / "file").touch(mode=0o600)
    (site / "open").mkdir()
    (site / "open").chmod(0o750)
    for name in ("link", "file", "open", "missing", "file/below"):
        assert not is_private(site / name)


def test_a_path_with_a_zero_byte_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="zero byte"):
        EmbeddedServer(Path("/tmp/a\0b"))
