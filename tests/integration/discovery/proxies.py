"""Real nginx and haproxy in front of exported workers, a load on them, and workers that a supervisor runs."""

from __future__ import annotations

import functools
import http.client
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Self

import pytest
from servers import free_port, installed, wait_until

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
        words = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
        subprocess.run(words, env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        found = installed(binary)
    if found is None:
        pytest.skip(f"{binary} is not installed, and cannot be installed here")
    return found


class Proxy:
    """A proxy process that is told to reload by a shell command."""

    def __init__(self, kind: str, directory: Path, exported: Path) -> None:
        self.port = free_port()
        words = {"directory": directory, "exported": exported, "port": self.port}
        config = directory / f"{kind}.conf"
        if kind == "nginx":
            binary = install("nginx-light", "nginx")
            config.write_text(NGINX.format(**words))
            command = [binary, "-c", str(config), "-p", str(directory)]
            self.reload = f"{binary} -c {config} -p {directory} -s reload 2>>{directory}/reload.log"
        else:
            binary = install("haproxy", "haproxy")
            config.write_text(HAPROXY.format(**words))
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


def get(port: int, timeout_s: float = 20.0) -> int:
    """Return the status of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class Load:
    """Threads that send one request after the other, and keep whatever was not answered with 200."""

    def __init__(self, port: int, threads: int = 4) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
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
                status = get(self._port)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                continue
            if status == 200:
                self.answered += 1
            else:
                self.failures.append(str(status))
