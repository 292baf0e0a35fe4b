"""The promise: the end of a process is seen however it ends, without having to be its parent, and only its own end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from process_groups import process_group_members

from allocator.kernel.identity import identify, is_alive
from allocator.kernel.processes import wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_S = 30.0
"""Far more than needed; passed only as the limit of a wait that ends by an event."""

MAIN_THREAD_ENDS = """
import ctypes, os, platform, sys, threading
def work():
    print("ready", flush=True); sys.stdin.read(); os._exit(0)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit(2): of this thread only
"""

GRANDPARENT = """
import subprocess, sys
child = subprocess.Popen(["cat"], stdin=0, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""


@contextlib.contextmanager
def started(*arguments: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_unreaped(child: subprocess.Popen[bytes]) -> None:
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_a_running_process_is_alive_and_a_wait_for_it_runs_out() -> None:
    with started("cat") as child:
        known = identify(child.pid)
        assert is_alive(known)
        assert [wait_for_exit(known, seconds) for seconds in (0, -1, 0.001)] == [False, False, False]


def test_a_process_that_ends_by_itself_ends_the_wait() -> None:
    with started("cat") as child:
        known = identify(child.pid)
        child.stdin.close()
        assert wait_for_exit(known, LONG_S)
        child.stdin = None


def test_a_process_killed_without_warning_ends_the_wait_before_it_is_reaped() -> None:
    with started("cat") as child:
        known = identify(child.pid)
        child.kill()
        assert wait_for_exit(known, None)
        assert not is_alive(known)


def test_a_zombie_is_dead_at_once_and_no_member_of_its_group() -> None:
    with started("cat", start_new_session=True) as child:
        known = identify(child.pid)
        child.kill()
        wait_unreaped(child)
        assert identify(child.pid) is None
        assert not is_alive(known)
        assert wait_for_exit(known, 0)
        assert process_group_members(child.pid) == []


def test_a_reaped_process_is_dead() -> None:
    with started("cat") as child:
        known = identify(child.pid)
        child.communicate()
        assert identify(child.pid) is None
        assert wait_for_exit(known, 0)


def test_a_pid_that_was_given_to_another_process_is_not_waited_for() -> None:
    with started("cat") as child:
        known = identify(child.pid)
        former = replace(known, start_time=known.start_time - 1)
        assert not is_alive(former)
        assert wait_for_exit(former, None)
        assert is_alive(known)


def test_a_process_of_another_parent_is_waited_for_as_well() -> None:
    with started(sys.executable, "-c", GRANDPARENT) as parent:
        grandchild = identify(int(parent.stdout.readline()))
        assert not wait_for_exit(grandchild, 0)
        parent.stdin.close()
        assert wait_for_exit(grandchild, LONG_S)
        parent.stdin = None


@pytest.mark.skipif(os.uname().machine not in {"x86_64", "aarch64"}, reason="the number of exit(2) is known for two")
@pytest.mark.skipif(sys.platform != "linux", reason="ends a main thread with a Linux system call")
def test_a_process_whose_main_thread_has_ended_lives_until_its_last_thread_ends() -> None:
    with started(sys.executable, "-c", MAIN_THREAD_ENDS, start_new_session=True) as child:
        known = identify(child.pid)
        assert child.stdout.readline() == b"ready\n"
        assert is_alive(known)
        assert process_group_members(child.pid) == [child.pid]
        child.stdin.close()
        assert wait_for_exit(known, LONG_S)
        assert not is_alive(known)
        child.stdin = None


def test_a_group_is_distinguished_from_ours_and_outlives_its_leader() -> None:
    code = "import subprocess; subprocess.Popen(['cat']); print('ready', flush=True)"
    read_end, write_end = os.pipe()
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdin=read_end, stdout=subprocess.PIPE, start_new_session=True
    )
    os.close(read_end)
    try:
        assert leader.stdout.readline() == b"ready\n"
        wait_unreaped(leader)
        (member,) = process_group_members(leader.pid)
        assert member != leader.pid
        assert member not in process_group_members(os.getpgrp())
        assert os.getpid() in process_group_members(os.getpgrp())
        left = identify(member)
    finally:
        os.close(write_end)
        leader.communicate()
    assert wait_for_exit(left, LONG_S)
    assert process_group_members(leader.pid) == []
