"""The exported file: replaced in one step, kept when Redis is away, reported and tried again when something fails;
and, with the real proxies under load, a rolling restart of all workers that loses no request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from proxies import Proxy, get, install
from rolling import PROXIES, TRANSPORTS, Fleet, has_drain_delay, rolling_restart
from servers import Server, wait_until
from workers import fleet

from allocator import LeaseState, PoolSpec, PortAllocator
from allocator.discovery.directory import Directory
from allocator.discovery.exports import Exporter, run_command
from allocator.discovery.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]


@pytest.fixture
def environment(redis_url: str, pool: PoolSpec, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    return kept | {
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONPATH": str(ROOT),
        "ALLOCATOR_REDIS_URL": redis_url,
        "ALLOCATOR_POOL": pool.name,
        "ALLOCATOR_HOST": "web-1",
        "ALLOCATOR_ADVERTISE": "127.0.0.1",
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running = []

    def one(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "allocator", *arguments]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield one
    for process in running:
        if process.poll() is None:
            process.terminate()
    for process in running:
        process.communicate(timeout=30)


@pytest.mark.parametrize("way", [*PROXIES, *TRANSPORTS])
def test_a_rolling_restart_of_all_workers_loses_no_request(
    way: str, redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    if way not in {"nginx", "haproxy"} and not has_drain_delay():
        pytest.skip("run has no --drain-delay: a worker is stopped before this one lets go of it")
    fleet = Fleet(redis_url, pool.name, tmp_path, delay_s=4)  # a loaded machine's readers are late
    try:
        answered, failures = rolling_restart(fleet, way)
    finally:
        fleet.close()
    assert failures == []
    assert answered > 100


def exported(file: Path) -> int:
    """Return how many workers a JSON export has."""
    rows = json.loads(file.read_text()) if file.exists() else []
    return sum(len(row["workers"]) for row in rows)


def services(ports: PortAllocator) -> Directory:
    return Directory(ports, whole_pool=True)


def test_the_file_follows_what_happens_in_one_step(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, tmp_path: Path
) -> None:
    out = tmp_path / "workers.json"
    printed: list[str] = []
    with services(ports) as directory:
        exporter = Exporter(
            directory,
            lambda known: FORMATS["json"](known.services()),
            out,
            report=lambda line, **_: printed.append(line),
        )
        thread = threading.Thread(target=exporter.run)
        thread.start()
        try:
            wait_until(out.exists, "nothing was written")
            assert json.loads(out.read_text()) == []
            with fleet(redis_url, pool.name, "web-7", replicas=2) as workers:
                wait_until(lambda: exported(out) == 2, "the workers do not come")
                workers[0].set(LeaseState.DRAINING)
                wait_until(lambda: exported(out) == 1, "the worker does not go")
            wait_until(lambda: exported(out) == 0, "the last worker does not go")
            assert out.stat().st_mode & 0o777 == 0o644
            assert [path.name for path in tmp_path.iterdir()] == [out.name]
        finally:
            exporter.stop()
            thread.join()
    assert printed[0] == f"{out} is written"


def test_a_directory_that_vanishes_is_reported_and_tried_again(ports: PortAllocator, tmp_path: Path) -> None:
    out = tmp_path / "gone" / "workers.conf"
    printed: list[str] = []
    with services(ports) as directory:
        exporter = Exporter(
            directory,
            lambda known: FORMATS["nginx"](known.services()),
            out,
            report=lambda line, **_: printed.append(line),
        )
        thread = threading.Thread(target=exporter.run)
        thread.start()
        try:
            wait_until(lambda: printed, "nothing was said")
            assert "cannot be written (No such file or directory)" in printed[0]
            assert printed[0].endswith("trying again in 1 s")
            out.parent.mkdir()
            wait_until(out.exists, "it was not tried again")
        finally:
            exporter.stop()
            thread.join()


def test_a_command_that_fails_is_reported_and_run_again_though_the_file_is_the_same(
    ports: PortAllocator, tmp_path: Path
) -> None:
    out, flag = tmp_path / "workers.conf", tmp_path / "flag"
    printed: list[str] = []
    with services(ports) as directory:
        exporter = Exporter(
            directory, lambda known: FORMATS["nginx"](known.services()), out,
            command=f"test -e {flag} && echo done >> {flag}", report=lambda line, **_: printed.append(line),
        )  # fmt: skip
        thread = threading.Thread(target=exporter.run)
        thread.start()
        try:
            wait_until(lambda: len(printed) > 1, "nothing was said")
            assert "failed with exit code 1; fix it; trying again in 1 s" in printed[1]
            flag.touch()
            wait_until(lambda: flag.read_text() == "done\n", "it was not run again")
        finally:
            exporter.stop()
            thread.join()


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


HANGING = "sleep 600 & echo $! > {file}; trap '' TERM; wait; wait; sleep 600"
"""A command that hangs with a child, and does not heed the first signal."""


def pid_in(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the command was not started")
    return int(file.read_text())


def test_a_command_that_hangs_is_ended_with_what_it_started_reported_and_run_again(
    ports: PortAllocator, tmp_path: Path
) -> None:
    out, pid_file, printed = tmp_path / "workers.conf", tmp_path / "pid", list[str]()
    command = f"test -e {tmp_path}/well || {{ {HANGING.format(file=pid_file)}; }}"
    with services(ports) as directory:
        exporter = Exporter(
            directory, lambda known: FORMATS["nginx"](known.services()), out,
            command=command, timeout_s=0.5, report=lambda line, **_: printed.append(line),
        )  # fmt: skip
        thread = threading.Thread(target=exporter.run)
        thread.start()
        try:
            child = pid_in(pid_file)
            wait_until(lambda: len(printed) > 1, "it was not reported")
            assert "did not end within 0.5 s and was ended; fix it, or give it more time" in printed[1]
            assert printed[1].endswith("trying again in 1 s")
            wait_until(lambda: not is_alive(child), "what the command started lives on")
            (tmp_path / "well").touch()
            wait_until(lambda: not (tmp_path / ".workers.conf.due").exists(), "it was not run again")
        finally:
            exporter.stop()
            thread.join()


@pytest.mark.parametrize("arguments", [["--watch"], []], ids=["watch", "once"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_export_whose_command_hangs_and_the_command(
    arguments: list[str], number: signal.Signals, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    command = HANGING.format(file=pid_file)
    exporting = start("export", "json", *arguments, "--out", str(tmp_path / "out.json"), "--exec", command)
    child = pid_in(pid_file)
    exporting.send_signal(number)
    assert exporting.wait(20) == (130 if number == signal.SIGINT else 0 if arguments else 143)
    wait_until(lambda: not is_alive(child), "what the command started lives on")


def test_a_signal_while_a_command_is_started_ends_the_command_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.started = pid_in(tmp_path / "pid")
            signal.raise_signal(signal.SIGTERM)

    def end(number: int, _frame: object) -> None:
        raise SystemExit(number)

    monkeypatch.setattr("allocator.discovery.exports.subprocess.Popen", Interrupted)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit):
            run_command(HANGING.format(file=tmp_path / "pid"))
    finally:
        signal.signal(signal.SIGTERM, before)
    wait_until(lambda: not is_alive(pid_in(tmp_path / "pid")), "what the command started lives on")


def test_a_command_that_failed_is_run_by_the_next_export_though_the_file_is_the_same(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out, runs = tmp_path / "out.json", tmp_path / "runs"
    arguments = ("export", "json", "--out", str(out), "--exec", f"echo run >> {runs}; test -e {tmp_path}/well")
    failed = start(*arguments)
    assert failed.wait(30) == 1
    assert failed.stderr is not None
    assert "failed with exit code 1; fix it" in failed.stderr.read()
    assert start(*arguments).wait(30) == 1
    (tmp_path / "well").touch()
    assert start(*arguments).wait(30) == 0
    assert start(*arguments).wait(30) == 0  # the file is the same, and the command succeeded
    assert runs.read_text() == "run\n" * 3


def test_a_service_that_is_asked_for_is_in_the_file_before_its_first_worker(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "workers.conf"
    assert start("export", "nginx", "--out", str(out), "--always", "org-1/email").wait(30) == 0
    assert "upstream email.org-1 {" in out.read_text()
    assert start("export", "nginx", "--out", str(out), "--org", "o", "--plugin", "@hay/plugin-email").wait(30) == 0
    assert "upstream ~ahay~splugin-email.o {" in out.read_text()
    assert start("export", "nginx", "--out", str(out), "--always", "email").wait(30) == 2


def test_when_redis_goes_away_the_last_file_stays_and_it_goes_on_afterwards(
    start: Callable[..., subprocess.Popen[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "workers.json"
    with Server() as server:
        url = environment["ALLOCATOR_REDIS_URL"] = server.ready().url
        environment["ALLOCATOR_CONNECT_TIMEOUT"] = "300ms"
        with PortAllocator.from_url(url, pool=environment["ALLOCATOR_POOL"], host="web-1") as ports:
            ports.apply_pool(PoolSpec(name=environment["ALLOCATOR_POOL"], first=14_850, last=14_890))
        with fleet(url, environment["ALLOCATOR_POOL"], "web-1", replicas=2) as workers:
            exporting = start("export", "json", "--watch", "--out", str(out))
            wait_until(lambda: exported(out) == 2, "the workers do not come")
            server.process.send_signal(signal.SIGSTOP)
            assert exporting.stderr is not None
            while "stay in use" not in (line := exporting.stderr.readline()):
                assert line, "it has ended"
            assert exported(out) == 2
            server.process.send_signal(signal.SIGCONT)
            workers[0].set(LeaseState.DRAINING)
            wait_until(lambda: exported(out) == 1, "it does not go on")
            exporting.terminate()
            assert exporting.wait(30) == 0


def test_without_a_file_it_prints_once_and_bad_choices_are_refused(
    environment: dict[str, str], redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    def export(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "allocator", "export", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    with fleet(redis_url, pool.name, "web-7") as workers:
        assert export("env").stdout == f"EMAIL__ORG_123=127.0.0.1:{workers[0].lease.port}\n"
        assert export("env", "--org", "org-9").stdout == ""
        assert json.loads(export("json", "--plugin", "stripe").stdout) == []
    for arguments, code in (
        (("nginx", "--watch"), 2),
        (("nginx", "--exec", "true"), 2),
        (("apache",), 2),
        (("nginx", "--org", "*"), 2),
        (("nginx", "--out", str(tmp_path / "no" / "file")), 78),
        (("nginx", "--out", str(tmp_path / "file"), "--exec", "exit 3"), 1),
    ):
        done = export(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_a_file_behind_a_link_is_replaced_where_it_is(ports: PortAllocator, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real" / "file.json")
    with services(ports) as directory:
        directory.start()
        Exporter(directory, lambda known: FORMATS["json"](known.services()), link).export()
    assert link.is_symlink()
    assert json.loads((tmp_path / "real" / "file.json").read_text()) == []


def test_the_proxies_really_answer_with_an_error_when_no_worker_is_there(tmp_path: Path) -> None:
    """The load test above would notice a lost request: a proxy without workers does not answer 200."""
    install("nginx-light", "nginx")
    file = tmp_path / "exported.conf"
    file.write_text(FORMATS["nginx"]({("email", "org-123"): ()}))
    proxy = Proxy("nginx", tmp_path, file)
    try:
        wait_until(lambda: get(proxy.port) == 502, "the proxy does not answer")
    finally:
        proxy.__exit__()
