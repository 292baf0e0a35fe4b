"""The promise: whichever source answers, the same listeners are seen, and a source that is missing costs nothing."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from allocator.kernel import socket_tables
from allocator.kernel.socket_tables import listening_sockets, read_netlink, read_proc
from allocator.kernel.sockets import port_range_overlap

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "{number:4d}: {address}:{port:04X} {remote}:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5d}        0 {inode} 1 00000000de603ecc 100 0 0 10 0\n"  # noqa: E501  # as the kernel prints it


def printed(address: str, port: int, *, state: str = "0A", uid: int = 0, inode: int = 7) -> str:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    text = "".join(f"{name:08X}" for (name,) in struct.iter_unpack("=I", packed))
    return ROW.format(number=0, address=text, port=port, remote="0" * len(text), state=state, uid=uid, inode=inode)


def write_tables(root: Path, **tables: str) -> Path:
    (root / "net").mkdir()
    for name, rows in tables.items():
        (root / "net" / name).write_text(HEADER + rows)
    return root


def seen(root: Path) -> set[tuple[int, str]]:
    return {(row.port, socket.inet_ntop(row.family, row.packed)) for row in read_proc(root)}


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "10.1.2.3", "::", "::1", "fe80::1:2", "::ffff:127.0.0.1"])
def test_an_address_reads_as_it_was_bound(tmp_path: Path, address: str) -> None:
    root = write_tables(tmp_path, **{"tcp6" if ":" in address else "tcp": printed(address, 5556)})
    assert seen(root) == {(5556, address)}


def test_the_user_and_the_inode_are_those_of_the_row(tmp_path: Path) -> None:
    root = write_tables(tmp_path, tcp=printed("127.0.0.1", 5556, uid=1000, inode=4_294_967_295))
    assert [(row.uid, row.inode) for row in read_proc(root)] == [(1000, 4_294_967_295)]


@pytest.mark.parametrize("state", ["01", "02", "03", "06", "07", "08"])
def test_a_connection_is_no_listener(tmp_path: Path, state: str) -> None:
    root = write_tables(tmp_path, tcp=printed("0.0.0.0", 5556, state=state) + printed("0.0.0.0", 5557))
    assert seen(root) == {(5557, "0.0.0.0")}


def test_a_host_without_ipv6_has_no_tcp6_table(tmp_path: Path) -> None:
    assert seen(write_tables(tmp_path, tcp=printed("127.0.0.1", 5556))) == {(5556, "127.0.0.1")}


def test_a_hidden_tcp_table_leaves_the_other(tmp_path: Path) -> None:
    assert seen(write_tables(tmp_path, tcp6=printed("::1", 5556))) == {(5556, "::1")}


def test_no_table_at_all_is_reported_so_that_the_next_source_is_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_proc(tmp_path))


def test_a_cut_or_garbled_row_is_passed_over(tmp_path: Path) -> None:
    good = printed("127.0.0.1", 5556)
    root = write_tables(tmp_path, tcp="garbage\n" + good.replace("0100007F", "01FF") + good + good[:40])
    assert seen(root) == {(5556, "127.0.0.1")}


def test_without_netlink_the_tables_under_proc_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_ports: int) -> None:
        raise OSError("Protocol not supported")

    monkeypatch.setattr(socket_tables, "read_netlink", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] in {row.port for row in listening_sockets()}


def test_without_netlink_and_proc_psutil_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_ports: int) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(socket_tables, "read_netlink", refuse)
    monkeypatch.setattr(socket_tables, "read_proc", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (row,) = [row for row in listening_sockets() if row.port == port]
    assert (row.family, socket.inet_ntop(row.family, row.packed)) == (socket.AF_INET, "127.0.0.1")
    assert row.pid is not None


def test_the_kernel_leaves_out_other_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = sorted(server.getsockname()[1] for server in (one, other))
        assert [row.port for row in read_netlink(ports[0], ports[0])] == ports[:1]
        assert {row.port for row in read_netlink(*ports)} >= set(ports)
        assert not {row.port for row in read_netlink(ports[0] + 1, ports[1] - 1)} & set(ports)


class Netlink:
    """A kernel that answers every request with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def __call__(self, *_: object) -> Netlink:
        return self

    def close(self) -> None: ...

    def setsockopt(self, level: int, option: int, value: bytes) -> None: ...

    def sendto(self, message: bytes, address: object) -> None: ...

    def recv(self, *_: object) -> bytes:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -2),  # NLMSG_ERROR: the tcp_diag module is missing
        struct.pack("=IHHII", 0, 20, 0, 1, 0),  # a row without a length would be read for ever
        struct.pack("=IHHII", 20, 20, 0, 1, 0) + b"\0" * 4,  # a row too short
    ],
)
def test_a_kernel_that_refuses_or_garbles_the_dump_is_an_error_not_an_empty_list(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(socket_tables.socket, "SocketType", Netlink(answer))
    with pytest.raises(OSError, match="refused"):
        list(read_netlink())


def test_asking_the_kernel_loads_no_psutil() -> None:
    code = (
        "import sys; from allocator.kernel import sockets, socket_tables, identity; import os\n"
        "socket_tables.listening_ports(); sockets.listeners()\n"
        "identity.identify(os.getpid()); identity.host_identity()\n"
        "print('psutil' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def write_range(root: Path, local: str, reserved: str) -> Path:
    settings = root / "sys/net/ipv4"
    settings.mkdir(parents=True)
    (settings / "ip_local_port_range").write_text(local)
    (settings / "ip_local_reserved_ports").write_text(reserved)
    return root


@pytest.mark.parametrize(
    ("local", "reserved", "overlap"),
    [
        ("32768\t60999\n", "\n", None),
        ("1024\t65535\n", "\n", (5556, 5599)),
        ("5590\t65535\n", "\n", (5590, 5599)),
        ("1024\t5556\n", "\n", (5556, 5556)),
        ("1024\t65535\n", "5556-5599\n", None),
        ("1024\t65535\n", "5556-5560,5599,8080\n", (5561, 5598)),
        ("garbled\n", "\n", None),
        ("1024\t65535\n", "a-b\n", None),
    ],
)
def test_only_ports_that_outgoing_connections_may_take_count_as_overlap(
    tmp_path: Path, local: str, reserved: str, overlap: tuple[int, int] | None
) -> None:
    assert port_range_overlap(5556, 5599, write_range(tmp_path, local, reserved)) == overlap


def test_a_system_without_these_settings_has_no_overlap(tmp_path: Path) -> None:
    assert port_range_overlap(5556, 5599, tmp_path) is None
