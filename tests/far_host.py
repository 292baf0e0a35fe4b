"""A host behind a network that can fall silent: a network namespace whose address leads to servers of this host.

Packets to it then vanish, as with a blackhole route or a host that lost its power: nobody refuses, nothing answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CLONE_NEWNET = 0x4000_0000
MAC = "02:00:00:00:00:02"


class FarHost:
    """One such host, with an address of its own (of TEST-NET-2) for each process of the tests."""

    def __init__(self) -> None:
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 60
        self.near_address, self.address = f"198.51.100.{4 * number + 1}", f"198.51.100.{4 * number + 2}"
        self._near = f"far{os.getpid() % 1_000_000}"
        self._stack = contextlib.ExitStack()
        self._ended = False

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
            pytest.skip("only root can make network namespaces, with unshare and ip")
        try:
            self._make()
        except (subprocess.CalledProcessError, OSError) as error:
            self._stack.close()
            pytest.skip(f"no network namespace can be made here: {getattr(error, 'stderr', None) or error}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        self._stack.close()

    def _make(self) -> None:
        arguments = ["unshare", "--net", "sh", "-c", "echo made; exec sleep 100000"]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._stack.callback(self._process.wait)
        self._stack.callback(self._process.kill)
        assert self._process.stdout is not None
        self._stack.enter_context(self._process.stdout)
        if not self._process.stdout.readline():
            raise OSError("unshare was refused")
        far = ("netns", str(self._process.pid))
        _run("ip", "link", "add", self._near, "type", "veth", "peer", "name", "near", "address", MAC, *far)
        self._stack.callback(_run, "ip", "link", "del", self._near)
        _run("ip", "addr", "add", f"{self.near_address}/30", "dev", self._near)
        _run("ip", "link", "set", self._near, "up")
        self._there("link", "set", "lo", "up")
        self._there("link", "set", "near", "up")
        self.answer()
        # Who has the address is known for ever: otherwise the kernel itself would report that nobody answers for it.
        _run("ip", "neigh", "replace", self.address, "lladdr", MAC, "dev", self._near, "nud", "permanent")

    def _there(self, *arguments: str) -> None:
        _run(*self.command, "ip", *arguments)

    @property
    def command(self) -> list[str]:
        """The words that begin a command which runs there."""
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net"]

    def silence(self) -> None:
        """Let every packet to it vanish."""
        self._there("addr", "del", f"{self.address}/30", "dev", "near")

    def answer(self) -> None:
        """Let it answer again; connections that were not given up go on."""
        self._there("addr", "add", f"{self.address}/30", "dev", "near")

    def leads_to(self, port: int) -> int:
        """Return a port of it whose connections are passed on to a port of this host's loopback."""
        listening = self._listening()
        self._stack.callback(listening.close)
        threading.Thread(target=self._accept, args=(listening, port), daemon=True).start()
        return int(listening.getsockname()[1])

    def _listening(self) -> socket.socket:
        """Return a socket that listens there: a socket is of the namespace in which its thread was."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self._process.pid}/ns/net") as namespace:  # noqa: PTH123  # its descriptor is needed
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    return
            made.append(socket.create_server((self.address, 0)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if not made:
            pytest.skip("this process may not enter a network namespace")
        return made[0]

    def _accept(self, listening: socket.socket, port: int) -> None:
        while not self._ended:
            try:
                outer, _ = listening.accept()
            except OSError:
                return
            try:
                inner = socket.create_connection(("127.0.0.1", port))
            except OSError:
                outer.close()
                continue
            for pair in ((outer, inner), (inner, outer)):
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65_536):
            target.sendall(content)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    source.close()


def _run(*arguments: str | Path) -> None:
    subprocess.run(arguments, check=True, capture_output=True, text=True)
