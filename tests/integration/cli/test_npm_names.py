"""A plugin with the name of an npm package: at each command, over HTTP, in the table, in a pool file, in `run`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from api_server import Worker, served

from allocator import AsyncPortAllocator, PluginTransport, PoolSpec, PortAllocator, service_url
from allocator.api.application import create_app

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Allocator

EMAIL = "@hay/plugin-email"
BAD = ["@", "@/x", "@a/", "@a/" + "b" * 212, "..", "@a/..", "@A/b", "@a/é"]


@pytest.fixture
def conventional(ports: PortAllocator, pool: PoolSpec) -> int:
    """The port that belongs to the plugin `email`."""
    ports.apply_pool(
        PoolSpec(
            name=pool.name, first=pool.first, last=pool.last, cooldown_ms=0, conventional={"email": (pool.first + 7,)}
        )
    )
    return pool.first + 7


def test_every_command_takes_it(allocator: Allocator, conventional: int, tmp_path: Path) -> None:
    worker = f"org-1/{EMAIL}#0"
    claimed = allocator("claim", EMAIL, "--org", "org-1", "--format", "env")
    assert f"HAY_PLUGIN_EMAIL_PLUGIN_PORT={conventional}\nEMAIL_PLUGIN_PORT={conventional}\n" in claimed.out
    assert json.loads(allocator("ls", "--plugin", EMAIL, "--format", "json").out)[0]["plugin"] == EMAIL
    assert worker in allocator("show", worker).out + allocator("who", str(conventional)).out
    assert "starting" in allocator("resolve", EMAIL, "--org", "org-1").err
    assert worker in allocator("events").out
    assert allocator("renew", str(conventional)).code == 0
    assert json.loads(allocator("export", "json", "--plugin", EMAIL).out)[0]["plugin"] == EMAIL
    assert allocator("release", worker).code == 0
    assert allocator("ls", "--format", "json").out.strip() == "[]"
    hinted = allocator("claim", EMAIL, "--org", "org-2", EMAIL_PLUGIN_PORT=str(conventional + 5))
    assert hinted.out.strip() == str(conventional + 5)
    file = tmp_path / "pool.toml"
    file.write_text(f'[pool]\nname = "scoped"\nfirst = 7001\nlast = 7009\n[pool.conventional]\n"{EMAIL}" = 7005\n')
    assert allocator("pool", "apply", str(file)).code == 0
    assert f'"{EMAIL}" = 7005' in allocator("pool", "show", "scoped").out
    assert allocator("claim", EMAIL, "--org", "org-1", "--pool", "scoped").out.strip() == "7005"


def test_run_gives_it_to_the_command(allocator: Allocator, conventional: int) -> None:
    code = "import os, sys; print(sys.argv[1:], *map(os.environ.get, sys.argv[3:]))"
    arguments = ["--restart", "never", "--", sys.executable, "-c", code, "{plugin}", "{port}"]
    arguments += ["EMAIL_PLUGIN_PORT", "HAY_PLUGIN_EMAIL_PLUGIN_PORT"]
    done = allocator("run", EMAIL, "--org", "org-1", *arguments)
    assert f"['{EMAIL}', '{conventional}', 'EMAIL_PLUGIN_PORT', " in done.out, done.err
    assert f"] {conventional} {conventional}\n" in done.out


def test_the_table_has_it(allocator: Allocator, conventional: int, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/workers.sqlite3"
    assert allocator("db", "upgrade", ALLOCATOR_DATABASE_URL=url).code == 0
    recorded = allocator("claim", EMAIL, "--org", "org-1", "--record", ALLOCATOR_DATABASE_URL=url)
    assert recorded.out.strip() == str(conventional), recorded.err
    drift = allocator("reconcile", "--once", ALLOCATOR_DATABASE_URL=url)
    assert drift.code == 0, drift.err


def test_the_api_and_the_transport_take_it(redis_url: str, pool: PoolSpec, conventional: int) -> None:
    application = create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1"))
    with served(application) as url, httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        worker = Worker(http)
        lease = worker.claim(EMAIL, "org-1")
        assert (lease["plugin"], lease["port"]) == (EMAIL, conventional)
        ready = http.patch(worker.path(lease), json={"state": "ready"}, headers=worker.proof(lease))
        assert ready.status_code == 200, ready.text
        assert http.get("/v1/leases", params={"plugin": EMAIL}).json()["leases"][0]["plugin"] == EMAIL
        for path in (f"/v1/resolve/{EMAIL}/org-1", "/v1/resolve/%40hay%2Fplugin-email/org-1"):
            assert http.get(path).json()["port"] == conventional
        (target,) = http.get("/v1/prometheus/targets").json()
        assert target["labels"]["worker"] == f"org-1/{EMAIL}#0"
        assert f'plugin="{EMAIL}"' in http.get("/metrics").text
        for bad in BAD:
            refused = http.post("/v1/leases", json={"plugin": bad, "org": "org-1"})
            assert refused.status_code in {400, 422}, refused.text
    transport = PluginTransport(redis_url, pool=pool.name)
    with httpx.Client(transport=transport, trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get(service_url(EMAIL, org="org-1") + "/health")  # found, but nobody listens


@pytest.mark.parametrize("bad", BAD)
def test_a_name_that_is_none_is_one_line_that_names_it(allocator: Allocator, bad: str) -> None:
    for arguments in (["claim", bad, "--org", "o"], ["resolve", bad, "--org", "o"], ["ls", "--plugin", bad]):
        refused = allocator(*arguments)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert refused.err.strip().isprintable()
        assert bad[:20] in refused.err or ascii(bad)[1:-1] in refused.err
