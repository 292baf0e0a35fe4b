"""Pieces of the deployment that need no container run here as they stand: server settings, scripts, nginx."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml
from servers import Server, cluster, free_port, sentinel_group
from supervised import Fleet, eventually

from allocator import PortAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[3] / "deploy"


def settings(name: str) -> str:
    """Return the lines of a settings file for a server that is given its port by the test."""
    lines = (DEPLOY / "redis" / name).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("port ")) + "\n"


def exercise(url: str) -> None:
    with PortAllocator.from_url(url, host="web-1") as ports:
        assert ports.store.server().warnings() == []
        lease = ports.claim("email", org="org-1")
        assert ports.renew(lease)[0].fence == lease.fence
        assert ports.release(lease)


def test_a_server_with_these_settings_is_all_that_is_wanted() -> None:
    with Server(configuration=settings("redis.conf")) as server:
        exercise(server.ready().url)


def test_sentinels_with_these_settings_lead_to_the_primary() -> None:
    with sentinel_group(configuration=settings("redis.conf"), watching=settings("sentinel.conf")) as (sentinels, _, _):
        exercise(f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in sentinels)}/mymaster")


def test_nodes_with_these_settings_make_a_cluster() -> None:
    with cluster(configuration=settings("cluster.conf")) as nodes:
        exercise(f"redis+cluster://127.0.0.1:{nodes[0].port}")


@pytest.fixture
def programs(fleet: Fleet) -> Path:
    """A directory with `allocator` and `python` as an image has them on its path."""
    directory = fleet.state / "bin"
    directory.mkdir()
    for name, text in (("allocator", "-m allocator"), ("python", "")):
        (directory / name).write_text(f'#!/bin/sh\nexec {sys.executable} {text} "$@"\n')
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture
def lease_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "lease"
    directory.mkdir()
    return directory


def start(container: dict, fleet: Fleet, programs: Path, lease: Path) -> subprocess.Popen:
    """Start a container's command, its volume being a directory."""
    arguments = [*container["command"], container["args"][0].replace("/lease", str(lease))]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = fleet.environment(PATH=path, ALLOCATOR_STATE_DIR=str(lease))
    process = subprocess.Popen(arguments, env=environment, cwd=DEPLOY.parent, text=True, stderr=subprocess.PIPE)
    fleet.started.append(process)
    return process


def test_an_init_container_claims_a_sidecar_keeps_and_gives_back(
    fleet: Fleet, programs: Path, lease_directory: Path
) -> None:
    pod = yaml.safe_load((DEPLOY / "kubernetes/worker-hook.yaml").read_text())["spec"]
    claim, keep = pod["initContainers"]
    (worker,) = pod["containers"]
    assert start(claim, fleet, programs, lease_directory).wait() == 0
    (lease,) = fleet.ports.leases()
    keeping = start(keep, fleet, programs, lease_directory)
    serving = start(worker, fleet, programs, lease_directory)
    assert fleet.listener(lease.port) == serving.pid
    eventually(lambda: fleet.ports.leases()[0].expires_at > lease.expires_at, "nobody renews it")
    serving.terminate()
    serving.wait()
    keeping.send_signal(signal.SIGTERM)
    assert keeping.wait() == 0
    assert fleet.ports.leases() == []


def test_the_worker_of_the_demonstration_has_what_prometheus_asks_it_for(fleet: Fleet) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    demo = DEPLOY / "demo"
    port = free_port()
    arguments = [sys.executable, str(demo / "worker.py"), f"--plugin-path={demo / 'plugins/email'}"]
    process = subprocess.Popen([*arguments, "--org-id=org-1", f"--port={port}"])
    fleet.started.append(process)
    fleet.listener(port)
    for count in (1, 2):
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        (metric,) = text_string_to_metric_families(answer.text)
        assert [(one.name, one.value) for one in metric.samples] == [("plugin_requests_total", count)]


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[str]:
    """nginx with the server of deploy/nginx, its exported workers in a directory of the test; gives its URL."""
    from test_deploy_files import run as run_tool

    binary = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if binary is None:
        pytest.skip("nginx is not installed; the package nginx-light of the distribution has it")
    port = free_port()
    (tmp_path / "workers").mkdir()
    server = (DEPLOY / "nginx/default.conf").read_text().replace("/etc/nginx/workers", f"{tmp_path}/workers")
    (tmp_path / "default.conf").write_text(server.replace("listen 8080", f"listen 127.0.0.1:{port}"))
    paths = "".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {tmp_path}/nginx.pid; error_log {tmp_path}/log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; {paths} include {tmp_path}/default.conf; }}\n"
    )
    arguments = [binary, "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)]
    run_tool(*arguments, "-t")
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGQUIT)


def test_nginx_sends_a_path_to_the_workers_that_the_exporter_wrote_and_nowhere_else(
    fleet: Fleet, nginx: str, tmp_path: Path
) -> None:
    services = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]
    arguments = [argument.replace("/workers/", f"{tmp_path}/workers/") for argument in services["exporter"]["command"]]
    arguments[-1] = arguments[-1].replace("HUP 1", f"HUP $(cat {tmp_path}/nginx.pid)")
    fleet.spawn(*arguments)
    fleet.run("--health", "/health", org="org-123", variables={"ALLOCATOR_ADVERTISE": "127.0.0.1"})
    fleet.lease(org="org-123")
    health = f"{nginx}/email.org-123/health"
    answers = [httpx.get(health)]

    def is_answered() -> bool:  # one of nginx's processes of before the reload may answer the next request still
        answers[0] = httpx.get(health)
        return answers[0].status_code == 200

    eventually(is_answered, "it never reached the worker")
    assert answers[0].json()["organizationId"] == "org-123"
    assert httpx.get(f"{nginx}/email.org-9/health").status_code == 502
    for path in ("127.0.0.1/health", "localhost:6379/", "email.org-123.evil.example/"):
        assert httpx.get(f"{nginx}/{path}").status_code == 404


@pytest.fixture
def echo() -> Iterator[int]:
    """A worker that answers with the path that it was asked for, as it came; gives its port."""

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *arguments: object) -> None:
            """Stay quiet."""

    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_nginx_passes_a_path_on_as_it_was_asked_for(nginx: str, echo: int, tmp_path: Path) -> None:
    (tmp_path / "workers/workers.conf").write_text(
        f"upstream email.org-1 {{ server 127.0.0.1:{echo}; }}\nupstream stripe.org-1 {{ server 127.0.0.1:{echo}; }}\n"
    )

    def asked(path: str) -> tuple[int, str]:  # httpx would put its own idea of the path on the wire
        connection = http.client.HTTPConnection(nginx.removeprefix("http://"), timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def arrives(path: str) -> bool:
        return asked(f"/email.org-1{path}") == (200, path)

    eventually(lambda: (tmp_path / "nginx.pid").exists() and (tmp_path / "nginx.pid").read_text(), "it never started")
    os.kill(int((tmp_path / "nginx.pid").read_text()), signal.SIGHUP)
    eventually(partial(arrives, "/health"), "it never read its workers")
    for path in ("/", "/a%20b", "/a%2Fb", "/a%3Fb", "/a%25b", "/a/../b", "/b//c", "/?x=%26&y=/z", "/a%3Fb?c%20d=e%23f"):
        eventually(partial(arrives, path), path)  # one of nginx's processes of before the reload may answer still
    for path in ("/email.org-1", "/email.org-1/../stripe.org-1/a", "/%65mail.org-1/a", "/a/../email.org-1/b"):
        assert asked(path)[0] == 404, path
