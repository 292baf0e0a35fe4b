"""The promise: a process is itself only with its pid, its start time and its boot; doubt counts as alive."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from process_groups import process_group_members

from allocator.kernel import identity, processes
from allocator.kernel.identity import ProcessIdentity, identify, is_alive
from allocator.kernel.processes import command_name
from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

BOOT = "9f5c"
GONE = 4_194_305  # one above the highest pid that Linux gives out


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(identity, "PROC", tmp_path)
    monkeypatch.setattr(processes, "PROC", tmp_path)
    monkeypatch.setattr(identity, "boot_id", lambda: BOOT)
    monkeypatch.setattr(identity, "_has_proc", lambda: True)
    return tmp_path


def write_process(
    proc: Path, pid: int, *, name: str = "node", state: str = "S", group: int = 1, threads: int = 1, start: int = 500
) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    middle = " ".join("0" for _ in range(14))
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 {group} {middle} {threads} 0 {start} 0 0\n")


def test_a_process_is_its_pid_its_start_and_its_boot(proc: Path) -> None:
    write_process(proc, 42, start=777)
    assert identify(42) == ProcessIdentity(42, 777, BOOT)


def test_a_name_with_brackets_and_blanks_does_not_shift_the_fields(proc: Path) -> None:
    write_process(proc, 42, name="a) Z 1 (b", start=777)
    assert identify(42) == ProcessIdentity(42, 777, BOOT)


def test_a_pid_used_again_is_another_process(proc: Path) -> None:
    write_process(proc, 42, start=777)
    old = identify(42)
    write_process(proc, 42, start=778)
    assert not is_alive(old)
    assert is_alive(identify(42))


def test_a_process_of_another_boot_is_dead(proc: Path) -> None:
    write_process(proc, 42)
    assert not is_alive(replace(identify(42), boot_id="another"))


@pytest.mark.parametrize("state", ["Z", "X", "x"])
def test_a_zombie_is_dead(proc: Path, state: str) -> None:
    write_process(proc, 42)
    known = identify(42)
    write_process(proc, 42, state=state, group=7)
    assert identify(42) is None
    assert not is_alive(known)
    assert process_group_members(7) == []


def test_a_process_whose_main_thread_ended_before_the_others_is_alive(proc: Path) -> None:
    write_process(proc, 42, state="Z", threads=3, group=7)
    assert is_alive(identify(42))
    assert process_group_members(7) == [42]


@pytest.mark.parametrize("pid", [0, -1, -42, GONE, 10**30])
def test_a_number_that_is_no_process_is_none(proc: Path, pid: int) -> None:
    assert identify(pid) is None
    assert not is_alive(ProcessIdentity(pid, 1, BOOT))


@pytest.mark.parametrize("answer", [None, PermissionError()])
def test_a_process_that_proc_hides_is_not_taken_for_dead(
    proc: Path, monkeypatch: pytest.MonkeyPatch, answer: Exception | None
) -> None:
    def kill(pid: int, number: int) -> None:
        assert number == 0
        if answer:
            raise answer

    monkeypatch.setattr(os, "kill", kill)
    assert is_alive(ProcessIdentity(42, 500, BOOT))
    with pytest.raises(ConfigurationError, match=r"^process 42 is hidden from this user .*hidepid.*; run as [^\n]*$"):
        identify(42)


def test_a_group_has_its_living_members_only(proc: Path) -> None:
    write_process(proc, 10, group=10)
    write_process(proc, 11, group=10)
    write_process(proc, 12, group=10, state="Z")
    write_process(proc, 13, group=13)
    (proc / "sys").mkdir()
    assert sorted(process_group_members(10)) == [10, 11]


def test_without_proc_psutil_distinguishes_processes() -> None:
    status = identity._status_by_psutil(os.getpid())
    assert status.alive
    assert status.group == os.getpgrp()
    assert identity._status_by_psutil(GONE) is None


def write_program(proc: Path, *, own: str, arguments: list[str], program: str) -> None:
    write_process(proc, 42)
    (proc / "42" / "comm").write_text(own + "\n")
    (proc / "42" / "cmdline").write_text("\0".join(arguments) + "\0")
    (proc / "42" / "exe").symlink_to(program)


@pytest.mark.parametrize(
    ("own", "arguments", "program", "name"),
    [
        ("node", ["node", "worker.js"], "/usr/bin/node", "node"),
        ("MainThread", ["node", "worker.js"], "/usr/bin/node", "node"),
        ("gunicorn", ["/usr/bin/python3", "/usr/bin/gunicorn", "app"], "/usr/bin/python3.11", "gunicorn"),
        ("a-name-cut-at-f", ["./a-name-cut-at-fifteen"], "/srv/a-name-cut-at-fifteen", "a-name-cut-at-f"),
        ("renamed", ["worker"], "/srv/worker (deleted)", "worker"),
        ("evil\x1b[2J\nline", ["x"], "/srv/evil\x1b[2J\nline", "evil?[2J?line"),
    ],
)
def test_a_program_has_the_name_that_a_person_started_in_one_printable_line(
    proc: Path, own: str, arguments: list[str], program: str, name: str
) -> None:
    write_program(proc, own=own, arguments=arguments, program=program)
    assert command_name(42) == name


def test_a_program_of_another_user_has_at_least_its_own_name(proc: Path) -> None:
    write_process(proc, 42)
    (proc / "42" / "comm").write_text("redis-server\n")
    assert command_name(42) == "redis-server"
    assert command_name(43) is None


def test_a_kernel_without_pidfd_is_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pidfd(pid: int) -> int:
        raise OSError("Function not implemented")

    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    known = identify(child.pid)
    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    monkeypatch.setattr(processes, "_POLL_S", 0.001)
    assert not processes.wait_for_exit(known, 0)
    child.send_signal(signal.SIGKILL)
    assert processes.wait_for_exit(known, 30)
    child.communicate()
