"""The promise: a port passes the proof exactly when a worker could listen on it; each listener is seen and named."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from allocator.kernel import sockets
from allocator.kernel.answers import prove_port
from allocator.kernel.socket_tables import listening_ports, read_netlink, read_proc, read_psutil
from allocator.kernel.sockets import Listener, listeners
from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

ANY_OF_BOTH = "dual stack [::]"
ADDRESSES = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "::ffff:127.0.0.1", ANY_OF_BOTH]
FIRST_PRIVILEGED_FREE = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def bound(address: str, port: int = 0, *, reuse_address: bool = False, reuse_port: bool = False) -> socket.socket:
    """A bound socket; `::` alone means IPv6 only."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            both = address == ANY_OF_BOTH or address.startswith("::ffff:")
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        one.bind(("::" if address == ANY_OF_BOTH else address, port))
    except OSError:
        one.close()
        raise
    return one


def port_of(one: socket.socket) -> int:
    return one.getsockname()[1]


def listening_at(address: str, port: int) -> list[Listener]:
    """The listeners of exactly this address: other tests may have the port's number on another one."""
    return [one for one in listeners(port, port) if one.address == ("::" if address == ANY_OF_BOTH else address)]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody listens on; kept for this test by sockets that are bound to it and do not listen.

    With SO_REUSEADDR they are in nobody's way but that of the kernel, which gives the port to no one else.
    """
    with contextlib.ExitStack() as kept:
        while True:
            first = bound("0.0.0.0", reuse_address=True)
            try:
                kept.enter_context(bound("::", port_of(first), reuse_address=True))
            except OSError:
                first.close()
                continue
            kept.enter_context(first)
            break
        yield port_of(first)


def test_a_free_port_passes_again_and_again_and_nothing_stays_open(port: int) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    assert [prove_port(port) for _ in range(3)] == [True, True, True]
    assert port not in listening_ports(port, port)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize("reuse_port", [False, True])
@pytest.mark.parametrize("reuse_address", [False, True])
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_listener_on_any_one_address_is_seen_and_refused(address: str, reuse_address: bool, reuse_port: bool) -> None:
    with bound(address, reuse_address=reuse_address, reuse_port=reuse_port) as stranger:
        stranger.listen()
        port = port_of(stranger)
        assert prove_port(port) is False
        assert listening_ports(port, port) == {port}
        assert listening_ports(port + 1) & {port} == set()


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_stranger_that_is_bound_and_silent_is_refused_though_no_table_shows_it(address: str) -> None:
    with bound(address) as stranger:
        port = port_of(stranger)
        assert listening_at(address, port) == []
        assert prove_port(port) is False


def test_an_outgoing_connection_from_the_port_is_refused_though_nobody_listens() -> None:
    with bound("127.0.0.1") as server, bound("127.0.0.1") as outgoing:
        server.listen()
        outgoing.connect(server.getsockname())
        assert listening_at("127.0.0.1", port_of(outgoing)) == []
        assert prove_port(port_of(outgoing)) is False


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connections_of_the_former_worker_do_not_matter(port: int, address: str) -> None:
    worker = bound(address, port, reuse_address=True)
    worker.listen()
    waiting, open_still = (socket.create_connection((address, port)) for _ in range(2))
    with waiting, open_still:
        server_ends = [worker.accept()[0] for _ in range(2)]
        worker.close()
        server_ends[0].close()  # closes first, so that its side is the one in TIME_WAIT
        assert waiting.recv(1) == b""
        waiting.close()
        assert state_of_connections(port) >= {"01", "06"}  # established, time-wait
        assert prove_port(port) is True
        server_ends[1].close()


def state_of_connections(port: int) -> set[str]:
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[3] for row in rows if row[1].endswith(f":{port:04X}")}


def test_a_host_without_ipv6_is_proven_by_ipv4_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr(sockets.socket, "socket", without_ipv6)
    assert prove_port(port) is True


def test_a_process_without_descriptors_proves_nothing_and_reports_it(port: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ConfigurationError, match=rf"^port {port} could not be tried .*Too many open files.*; fix"):
            prove_port(port)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Imports before it becomes nobody, who may not be able to read this tree.
AS_NOBODY = """
import os
from allocator.kernel.answers import ConfigurationError, prove_port
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    prove_port(1)
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="another user can be taken on by root only")
@pytest.mark.skipif(int(FIRST_PRIVILEGED_FREE.read_text()) < 2, reason="this host has no privileged ports")
def test_a_port_below_1024_without_the_right_is_a_setting_to_fix() -> None:
    reported = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=True).stdout
    assert reported == (
        "this user may not bind port 1; use a pool above port 1023, or give the worker CAP_NET_BIND_SERVICE\n"
    )


STRANGER = """
import socket, sys
one = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
one.bind((sys.argv[1], 0)); one.listen(); print(one.getsockname()[1], flush=True); sys.stdin.read()
"""


@contextlib.contextmanager
def a_stranger(address: str, **options: object) -> Iterator[tuple[int, int]]:
    """Another process that listens; gives its pid and port."""
    arguments = [sys.executable, "-c", STRANGER, address]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.communicate()


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::1"])
def test_a_stranger_is_named_by_pid_program_and_user(address: str) -> None:
    with a_stranger(address) as (pid, port):
        (one,) = listening_at(address, port)
        assert (one.port, one.address, one.pid) == (port, address, pid)
        assert one.command.startswith("python")
        assert one.user == pwd.getpwuid(os.getuid()).pw_name
        assert prove_port(port) is False


def test_a_killed_stranger_leaves_its_port_to_others() -> None:
    with a_stranger("127.0.0.1") as (pid, port):
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie has closed its sockets
        assert listening_at("127.0.0.1", port) == []


def test_a_process_that_may_not_be_seen_still_has_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def may_not(path: object) -> None:
        raise PermissionError

    monkeypatch.setattr(sockets.os, "scandir", may_not)
    with bound("127.0.0.1") as stranger:
        stranger.listen()
        (one,) = listening_at("127.0.0.1", port_of(stranger))
    assert (one.pid, one.command, one.user) == (None, None, pwd.getpwuid(os.getuid()).pw_name)


def test_a_user_without_a_name_is_shown_by_number() -> None:
    assert sockets._user(4_000_000_000) == "4000000000"
    assert sockets._user(None) is None


def test_a_socket_shared_with_a_child_belongs_to_the_parent() -> None:
    with bound("127.0.0.1") as parent:
        parent.listen()
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(parent.fileno(),))
        try:
            (one,) = listening_at("127.0.0.1", port_of(parent))
        finally:
            child.communicate()
    assert one.pid == min(os.getpid(), child.pid)


def test_listeners_come_in_order_of_port_and_address_one_for_each_socket(port: int) -> None:
    with bound("127.0.0.1", port, reuse_address=True) as first, bound("127.0.0.2", port, reuse_address=True) as second:
        second.listen()
        first.listen()
        assert [one.address for one in listeners(port, port)] == ["127.0.0.1", "127.0.0.2"]


def test_netlink_proc_and_psutil_see_the_same_listeners() -> None:
    with contextlib.ExitStack() as stack:
        made = set()
        for address in ("127.0.0.1", "127.0.0.2", "::1", ANY_OF_BOTH) * 100:
            one = stack.enter_context(bound(address))
            one.listen()
            host, number = one.getsockname()[:2]
            made.add((number, one.family, socket.inet_pton(one.family, host)))
        netlink, proc, psutil = (
            {row[:3]: row for row in read() if row[:3] in made} for read in (read_netlink, read_proc, read_psutil)
        )
    assert set(netlink) == set(proc) == set(psutil) == made
    assert netlink == proc
    assert {row.pid for row in psutil.values()} == {os.getpid()}
