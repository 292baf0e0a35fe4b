"""The file of each format without a service, and with one that has no worker: the program that reads it takes it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from proxies import EnvoyFile, TraefikFile, install
from servers import wait_until

from allocator import Endpoint, WorkerId
from allocator.discovery.formats import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

    from allocator.discovery.formats import Services

EMAIL = ("email", "org-123")
ONE: Services = {EMAIL: (Endpoint("127.0.0.1", 5556, "web-1", WorkerId("org-123", "email", 0), 1),)}
NONE_LEFT: Services = {EMAIL: ()}
EMPTY: Services = {}


@pytest.mark.parametrize("services", [ONE, NONE_LEFT, EMPTY], ids=["one", "none left", "empty"])
def test_nginx_takes_it(services: Services, tmp_path: Path) -> None:
    nginx = install("nginx-light", "nginx")
    exported, config = tmp_path / "workers.conf", tmp_path / "nginx.conf"
    exported.write_text(FORMATS["nginx"](services))
    config.write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ include {exported}; }}\n")
    done = subprocess.run([nginx, "-t", "-c", config, "-p", tmp_path], capture_output=True, text=True, check=False)
    assert "syntax is ok" in done.stderr, done.stderr


@pytest.mark.parametrize("services", [ONE, NONE_LEFT, EMPTY], ids=["one", "none left", "empty"])
def test_haproxy_takes_it(services: Services, tmp_path: Path) -> None:
    haproxy = install("haproxy", "haproxy")
    exported, config = tmp_path / "workers.cfg", tmp_path / "haproxy.cfg"
    exported.write_text(FORMATS["haproxy"](services))
    rest = "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nlisten any\n bind :1\n"
    config.write_text(rest)
    arguments = [haproxy, "-c", "-f", str(config), "-f", str(exported)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("services", [NONE_LEFT, EMPTY], ids=["none left", "empty"])
def test_traefik_lets_go_of_the_workers_of_before(services: Services, tmp_path: Path) -> None:
    file = tmp_path / "dynamic/workers.yml"
    file.parent.mkdir()
    file.write_text(FORMATS["traefik"](ONE))
    with TraefikFile(tmp_path, file) as traefik:
        wait_until(lambda: traefik.servers() == ["http://127.0.0.1:5556"], f"it takes nothing: {traefik.printed()}")
        replace(file, FORMATS["traefik"](services))
        wait_until(lambda: traefik.servers() == [], f"it keeps the worker: {traefik.printed()}")
        replace(file, FORMATS["traefik"](ONE))
        wait_until(lambda: traefik.servers() == ["http://127.0.0.1:5556"], "it does not take it again")
        assert " ERR " not in traefik.printed()


def test_envoy_lets_go_of_the_workers_of_before(tmp_path: Path) -> None:
    file = tmp_path / "workers.json"
    file.write_text(FORMATS["envoy"](EMPTY))
    with EnvoyFile(tmp_path, file) as envoy:
        for services, known in ((ONE, 1), (NONE_LEFT, 0), (ONE, 1)):
            replace(file, FORMATS["envoy"](services))
            wait_until(lambda known=known: envoy.hosts() == known, f"it has {envoy.hosts()}: {envoy.printed()}")
        replace(file, FORMATS["envoy"](EMPTY))
        wait_until(lambda: envoy.counted("update_attempt") >= 5, f"it does not read the empty file: {envoy.printed()}")
        assert envoy.counted("update_rejected") == 0


def replace(file: Path, text: str) -> None:
    """Replace a file in one step, as the export does."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.parametrize("form", ["prometheus", "json"])
@pytest.mark.parametrize("services", [NONE_LEFT, EMPTY], ids=["none left", "empty"])
def test_json_stays_an_array(form: str, services: Services) -> None:
    assert isinstance(json.loads(FORMATS[form](services)), list)


def test_a_shell_reads_the_empty_variables() -> None:
    for services in (EMPTY, NONE_LEFT):
        done = subprocess.run(
            ["sh", "-eu"], input=FORMATS["env"](services), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
