"""Where a command runs: streams that are closed or full, no home, no working directory, odd places for its state."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from allocator.model.settings import state_directory

if TYPE_CHECKING:
    from conftest import Allocator

    from allocator import PortAllocator

COMMAND = f"{sys.executable} -m allocator"


def shell(allocator: Allocator, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("allocator ", f"{COMMAND} ", 1)],
        env=allocator.environment(**variables),
        cwd=allocator.state,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing_about_what_is_done(
    allocator: Allocator, ports: PortAllocator, closed: str
) -> None:
    done = shell(allocator, f"allocator claim email --org o {closed}")
    assert done.returncode == 0
    (lease,) = ports.leases()
    assert done.stdout == ("" if ">&-" in closed.split() else f"{lease.port}\n")
    assert done.stderr == ""


def test_an_error_with_standard_error_closed_is_not_written_among_the_data(allocator: Allocator) -> None:
    done = shell(allocator, "allocator claim email --org 'a b' 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("line", ["allocator ls >/dev/full", "allocator --help >/dev/full"])
def test_a_full_disk_under_standard_output_is_one_line_and_exit_78(allocator: Allocator, line: str) -> None:
    done = shell(allocator, line)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_port_that_could_not_be_printed_is_printed_by_the_next_claim(
    allocator: Allocator, ports: PortAllocator
) -> None:
    assert shell(allocator, "allocator claim email --org o >/dev/full").returncode == 78
    assert allocator("claim", "email", "--org", "o").out == f"{ports.leases()[0].port}\n"


@pytest.mark.parametrize("line", ["allocator --help", "allocator pool show", "allocator events --count 1000"])
def test_a_reader_that_goes_away_is_no_error(allocator: Allocator, line: str) -> None:
    allocator("claim", "email", "--org", "o")
    done = shell(allocator, f"{line} | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


def test_messages_that_nobody_reads_stop_no_command(allocator: Allocator) -> None:
    port = allocator("claim", "email", "--org", "o").out.strip()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        arguments = [sys.executable, "-m", "allocator", "release", "1", port]
        arguments[4] = str(int(port) + 1)  # has no lease, which is said first
        environment = {name: value for name, value in allocator.environment().items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(arguments, env=environment, stderr=broken, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(allocator("ls", "--format", "json").out) == []


def test_a_working_directory_that_was_removed_is_no_error(allocator: Allocator) -> None:
    done = shell(allocator, "mkdir gone && cd gone && rmdir ../gone && allocator ls")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_directory_instead_of_the_settings_file_is_named(allocator: Allocator) -> None:
    (allocator.state / "allocator.toml").mkdir()
    done = allocator("ls")
    assert done.code == 78
    assert (
        done.err
        == "allocator: the settings file allocator.toml cannot be read (Is a directory); fix it or its rights\n"
    )


def test_a_terminal_without_a_character_set_shows_what_it_can(allocator: Allocator) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    done = allocator("claim", "email", "--org", "ü" * 500, **variables)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "not a valid organisation name" in done.err
    named = tempfile.mkdtemp(suffix="-wörker")
    link = Path(named, "wörker")
    link.symlink_to(sys.executable)
    port = int(allocator("claim", "email", "--org", "o", **variables).out)
    listen = f"import socket, sys; s = socket.create_server(('127.0.0.1', {port})); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([str(link), "-c", listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        shown = allocator("who", str(port), **variables)
        worker.stdin.close()
    shutil.rmtree(named)
    assert shown.code == 0
    assert f"pid {worker.pid}" in shown.out


@pytest.mark.parametrize("limit", [10, 16, 64])
def test_few_descriptors_are_enough_or_reported_in_one_line(
    allocator: Allocator, ports: PortAllocator, limit: int
) -> None:
    done = shell(allocator, f"ulimit -n {limit}; allocator claim email --org o")
    assert done.returncode in {0, 69, 78}
    assert "Traceback" not in done.stderr
    assert len(ports.leases()) == (done.returncode == 0)


# -- state --


def test_the_longest_names_have_a_lease_file_like_all_others(allocator: Allocator, redis_url: str) -> None:
    name = "x" * 128
    text = f'[pool]\nname = "{name}"\nfirst = 14900\nlast = 14903\n'
    assert allocator("pool", "apply", "-", input=text).code == 0
    address = ("--pool", name, "--host", "h" * 128)
    first = allocator("claim", name, "--org", name, "--instance", "99999", *address)
    assert (first.code, first.err) == (0, "")
    assert allocator("claim", name, "--org", name, "--instance", "99999", *address).out == first.out
    other = allocator("claim", name, "--org", "o", "--pool", name, "--host", "h" * 127 + "i")
    assert other.code == 0
    assert allocator("renew", first.out.strip(), *address).code == 0
    assert allocator("release", "--all", *address).code == 0
    assert len(list(allocator.state.glob("allocator/leases/*.json"))) == 1


def test_a_disk_quota_that_is_used_up_leaves_no_lease(allocator: Allocator, ports: PortAllocator) -> None:
    def no_more_bytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    arguments = [sys.executable, "-B", "-m", "allocator", "claim", "email", "--org", "o"]
    done = subprocess.run(
        arguments, env=allocator.environment(), capture_output=True, text=True, preexec_fn=no_more_bytes, check=False
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "the lease file cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert ports.leases() == []
    assert list(allocator.state.glob("allocator/leases/*")) == []


def test_a_state_directory_that_cannot_be_written_leaves_no_lease(allocator: Allocator, ports: PortAllocator) -> None:
    done = allocator("claim", "email", "--org", "o", XDG_STATE_HOME="/proc/self")  # refuses even root
    assert (done.code, done.out) == (78, "")
    assert "the lease file cannot be written in /proc/self/allocator/leases" in done.err
    assert ports.leases() == []


def test_state_lives_where_the_variables_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = {"HOME": "/home/me"}
    assert state_directory(home) == Path("/home/me/.local/state/allocator")
    assert state_directory(home | {"XDG_STATE_HOME": "/s"}) == Path("/s/allocator")
    assert state_directory(home | {"XDG_STATE_HOME": "relative"}) == Path("/home/me/.local/state/allocator")
    assert state_directory(home | {"XDG_STATE_HOME": "/s", "ALLOCATOR_STATE_DIR": "mine"}) == tmp_path / "mine"


def test_a_user_without_a_home_can_look_and_learns_what_keeping_state_needs(
    allocator: Allocator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from allocator.__main__ import status_of

    def nobody(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    for name, value in allocator.variables.items():
        monkeypatch.setenv(name, value)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "ALLOCATOR_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert status_of(["ls"]) == 0
    assert status_of(["claim", "email", "--org", "o"]) == 78
    assert "has no home directory to keep state in" in capsys.readouterr().err
    monkeypatch.setenv("ALLOCATOR_STATE_DIR", str(allocator.state / "here"))
    assert status_of(["claim", "email", "--org", "o"]) == 0
    assert len(list((allocator.state / "here" / "leases").glob("*.json"))) == 1


def test_a_wall_clock_a_year_off_is_not_noticed(allocator: Allocator, tmp_path: Path) -> None:
    shift = "import time\nreal = time.time\ntime.time = lambda: real() + 31_536_000\n"
    (tmp_path / "sitecustomize.py").write_text(shift)
    paths = f"{tmp_path}:{allocator.environment()['PYTHONPATH']}"
    port = allocator("claim", "email", "--org", "o", "--ttl", "20s", PYTHONPATH=paths).out.strip()
    assert allocator("claim", "email", "--org", "o").out.strip() == port
    (off,) = json.loads(allocator("ls", "--format", "json", PYTHONPATH=paths).out)
    (right,) = json.loads(allocator("ls", "--format", "json").out)
    assert off["granted_at"] == right["granted_at"]
    assert " s " in allocator("ls", PYTHONPATH=paths).out  # what is left of it
    assert allocator("renew", port, PYTHONPATH=paths).code == 0
    found = allocator("doctor", PYTHONPATH=paths)
    assert "clock is +31536000 s off" in found.out
    assert allocator("release", port, PYTHONPATH=paths).code == 0


def test_a_silent_server_is_asked_once_within_the_time_limit(allocator: Allocator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        done = allocator("claim", "email", "--org", "o", "--redis-url", url, ALLOCATOR_CONNECT_TIMEOUT="300ms")
        silent.settimeout(0.1)
        asked = 0
        try:
            while True:
                silent.accept()[0].close()
                asked += 1
        except TimeoutError:
            pass
    assert done.code == 69
    assert "did not answer within 300 ms" in done.err
    assert asked == 1
