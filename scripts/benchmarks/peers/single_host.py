"""What leases ports on one host without a server for the fleet: portpicker's portserver, and port-for's store."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import port_for
from portpicker import get_port_from_port_server

from benchmarks.peers.contract import Client, OutOfTimeError, Peer, Ports, Traits
from benchmarks.servers import CLIENT_CPU, SERVER_CPU

STARTED_S = 10.0

# The server as it is, but with a part of its ports leased to a process: by claims, 60,000 of them would take a minute.
FILLED_SERVER = """
import importlib.machinery, importlib.util, random, sys
path, (pid, first, size, count) = sys.argv[1], map(int, sys.argv[2:6])
del sys.argv[1:6]
loader = importlib.machinery.SourceFileLoader("portserver", path)
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("portserver", loader))
loader.exec_module(module)
add, owned_since = module._PortPool.add_port_to_free_pool, module._get_process_start_time(pid)
owned = set(random.Random(1).sample(range(first, first + size), count))
def add_owned(pool, port):
    add(pool, port)
    if port in owned:
        pool._port_queue[-1].pid, pool._port_queue[-1].start_time = pid, owned_since
module._PortPool.add_port_to_free_pool = add_owned
module.main()
"""


class Portserver(Peer):
    """portpicker's portserver: a process of the host that gives a port to a process until that ends."""

    name = "`portpicker`'s portserver"
    on_redis = False
    traits = Traits("**no**", "no: until the process ends", "not needed", "no", "no: refuses", "yes, TCP and UDP",
                    "the port free for longest, then the next")  # fmt: skip

    def __init__(self, url: str, ports: Ports) -> None:
        super().__init__(url, ports)
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"@bench-portserver-{os.getpid()}-{ports.size}"

    def prepare(self) -> None:
        """The server is started by `fill`."""

    def fill(self, count: int) -> None:
        self.close()
        script = str(Path(sys.executable).with_name("portserver.py"))
        first, size = self.ports.first, self.ports.size
        arguments = [sys.executable, "-c", FILLED_SERVER, script, *map(str, (os.getpid(), first, size, count))]
        arguments += ["--portserver_address", self.address, "--portserver_static_pool", f"{first}-{first + size - 1}"]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if os.sched_getaffinity(0) == {CLIENT_CPU}:
            os.sched_setaffinity(self._process.pid, {SERVER_CPU})
        deadline = time.monotonic() + STARTED_S
        while self.address not in Path("/proc/net/unix").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)

    def client(self, number: int) -> Client:  # noqa: ARG002  # its clients are its processes
        return PortserverClient(self.address)

    def close(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None


class PortserverClient(Client):
    """Claims for processes that wait already; the release is the end of such a process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: list[int] = []

    def ready(self, count: int) -> None:
        self.close()
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                while True:
                    signal.pause()
            self._waiting.append(pid)

    def claim(self, until: float) -> Any:
        if not self._waiting:
            raise OutOfTimeError(0.0)
        pid = self._waiting[-1]
        with contextlib.redirect_stderr(io.StringIO()):  # it shows of each refusal that it was one
            port = get_port_from_port_server(self._address, pid=pid)
        if port is None:
            if time.perf_counter() > until:
                raise OutOfTimeError(1.0)
            return None
        return self._waiting.pop()

    def release(self, lease: Any) -> None:
        os.kill(lease, signal.SIGKILL)
        os.waitpid(lease, 0)

    def close(self) -> None:
        while self._waiting:
            self.release(self._waiting.pop())


class PortForStore(Peer):
    """port-for's store: a file that shows which application has which port."""

    name = "`port-for`'s store"
    on_redis = False
    most_clients: ClassVar[int] = 1
    traits = Traits("**no**", "no: until it is given back", "not needed", "no", "no: refuses", "yes, TCP over IPv4",
                    "a random port, up to 100 times; the file has no lock, so one client at a time")  # fmt: skip

    def __init__(self, url: str, ports: Ports) -> None:
        super().__init__(url, ports)
        self._directory = tempfile.TemporaryDirectory(prefix="bench-port-for-")
        self.path = str(Path(self._directory.name) / "port-for.conf")

    def prepare(self) -> None:
        """The store makes its file itself."""

    def fill(self, count: int) -> None:
        lines = [f"filling-{port} = {port}" for port in self.ports.shuffled()[:count]]
        Path(self.path).write_text("\n".join(["[DEFAULT]", *lines, ""]), encoding="utf-8")
        self.filled = count

    def client(self, number: int) -> Client:
        return PortForClient(self, number)

    def close(self) -> None:
        self._directory.cleanup()


class PortForClient(Client):
    """Chooses a port that no application has, and enters it."""

    def __init__(self, peer: PortForStore, number: int) -> None:
        self._store = port_for.PortStore(peer.path)
        self._range = (peer.ports.first, peer.ports.first + peer.ports.size - 1)
        self._number, self._at = number, 0

    def claim(self, until: float) -> Any:  # noqa: ARG002  # one answer, however full
        self._at += 1
        application = f"worker-{self._number}-{self._at}"
        taken = {port for _, port in self._store.bound_ports()}
        try:
            port = port_for.get_port(self._range, exclude_ports=taken)
        except port_for.PortForException:
            return None
        self._store.bind_port(application, port)
        return application

    def release(self, lease: Any) -> None:
        self._store.unbind_port(lease)


ALL: tuple[type[Peer], ...] = (Portserver, PortForStore)
