"""The npm package as its users get it: packed, installed into an empty project, against a real API."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import redis
from api_server import served
from far_host import FarHost
from runners_table import Table
from supervised import eventually

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api.application import create_app
from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler, Report
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from allocator import PoolSpec

PACKAGE = Path(__file__).parents[3] / "deploy/node"
WORKERS = 20


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; the packages nodejs and npm of the distribution have it")
    return path


@pytest.fixture
def url(redis_url: str, pool: PoolSpec) -> Iterator[str]:
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator)) as found:
        yield found


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project that has installed the packed package."""
    npm, directory = program("npm"), tmp_path_factory.mktemp("project")
    run([npm, "pack", "--pack-destination", str(directory)], PACKAGE)
    (packed,) = directory.glob("portlease-*.tgz")
    (directory / "package.json").write_text('{"private": true}')
    run([npm, "install", "--offline", "--no-audit", "--no-fund", str(packed)], directory)
    return directory


def run(arguments: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        arguments,
        cwd=directory,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_package_pass_against_a_real_api(url: str) -> None:
    files = [str(path) for path in sorted((PACKAGE / "test").glob("*.test.mjs"))]
    printed = run([program("node"), "--test", "--test-reporter=tap", *files], PACKAGE, {"PORTLEASE_TEST_URL": url})
    assert "# fail 0" in printed
    assert "# skipped 0" in printed


@pytest.mark.parametrize(
    ("kind", "load"),
    [
        ("commonjs", 'const p = require("portlease");'),
        ("module", 'import * as p from "portlease";'),
    ],
)
def test_an_empty_project_loads_it_by_require_and_by_import(project: Path, kind: str, load: str) -> None:
    source = f"{load} console.log(typeof p.Portlease, typeof p.HeldLease)"
    assert run([program("node"), f"--input-type={kind}", "-e", source], project) == "function function\n"


def test_it_has_no_dependencies_and_packs_nothing_but_its_code(project: Path) -> None:
    assert {path.name for path in (project / "node_modules").iterdir() if path.is_dir()} == {"portlease"}
    packed = project / "node_modules/portlease"
    assert "dependencies" not in json.loads((packed / "package.json").read_text())
    assert not (packed / "test").exists()


@pytest.mark.parametrize("arguments", [["publint", "--strict"], ["@arethetypeswrong/cli", "--pack", "."]])
def test_the_checkers_of_packages_find_nothing(arguments: list[str], tmp_path: Path) -> None:
    npm = program("npm")
    install = [npm, "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", str(tmp_path), arguments[0]]
    if subprocess.run(install, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip(f"{arguments[0]} cannot be installed from the npm registry")
    name = {"publint": "publint", "@arethetypeswrong/cli": "attw"}[arguments[0]]
    copy = tmp_path / "package"
    shutil.copytree(PACKAGE, copy)
    run([str(tmp_path / "node_modules/.bin" / name), *arguments[1:]], copy)


ORCHESTRATOR = """
import fs from "node:fs/promises";
import { Orchestrator } from "./orchestrator.mjs";

const [directory, url, count, shared] = process.argv.slice(2);
const orchestrator = new Orchestrator({ directory, url });
const found = await orchestrator.recover();
const worker = `
  const server = require("node:http").createServer((_, answer) => answer.end(String(process.pid)));
  server.listen(Number(process.argv[1]));
`;
for (let number = found.length; number < Number(count); number += 1) {
  await orchestrator.start(process.execPath, ["-e", worker, "{port}"], {
    plugin: "@hay/plugin-email", labels: { number: String(number) }, stdio: "ignore", ttlMs: 10_000,
    ...(shared ? { org: shared, instance: "auto" } : { org: `org-${number}` }),
  });
}
console.log(JSON.stringify(found.map((lease) => lease.port)));
process.on("SIGTERM", async () => {
  for (const lease of orchestrator.leases.values()) {
    process.kill(-lease.pid, "SIGKILL");
    await orchestrator.release(lease.port);
  }
  process.exit(0);
});
"""


@pytest.fixture
def orchestrator(project: Path) -> list[str]:
    """The command of an orchestrator that has copied the example of the package."""
    shutil.copy(project / "node_modules/portlease/examples/orchestrator.mjs", project)
    (project / "program.mjs").write_text(ORCHESTRATOR)
    return [program("node"), str(project / "program.mjs")]


def started(arguments: list[str]) -> tuple[subprocess.Popen, list[int]]:
    """Start an orchestrator; return it, once its workers listen, with the ports of those that it found again."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def forget_leases(redis_url: str, pool: PoolSpec) -> None:
    with redis.Redis.from_url(redis_url) as server:
        for key in server.scan_iter(f"alloc:{{{pool.name}}}:*", count=1_000):
            if b":lease:" in key or b":tokens:" in key or b":worker:" in key or b":ports:" in key:
                server.delete(key)


def kill_groups(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def test_a_killed_orchestrator_finds_its_workers_again_after_redis_lost_everything(
    orchestrator: list[str], url: str, redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    arguments = [*orchestrator, str(tmp_path), url, str(WORKERS)]

    def leases() -> dict[int, tuple]:
        shown = httpx.get(f"{url}/v1/leases", params={"limit": 100}).json()["leases"]
        return {one["port"]: (one["pid"], one["state"], one["labels"]["number"], one["org"]) for one in shown}

    first, found = started(arguments)
    try:
        assert found == []
        before = leases()
        assert len(before) == WORKERS
        assert {state for _, state, _, _ in before.values()} == {"ready"}
        kill(first)
        with redis.Redis.from_url(redis_url) as server:
            server.flushall()
        second, found = started(arguments)
        try:
            assert sorted(found) == sorted(before)
            assert leases() == before
            for number in range(WORKERS):
                response = httpx.get(f"{url}/v1/resolve/@hay%2Fplugin-email/org-{number}")
                assert before[response.json()["port"]][2] == str(number)
        finally:
            second.send_signal(signal.SIGTERM)
            second.communicate(timeout=60)
        assert second.returncode == 0
        eventually(lambda: leases() == {})
    finally:
        kill_groups(pid for pid, *_ in before.values())


def test_two_orchestrators_on_two_hosts_share_a_pool_and_a_table(
    orchestrator: list[str], redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    hosts = ("web-1", "web-2")
    with contextlib.ExitStack() as stack:
        urls = {
            host: stack.enter_context(
                served(create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host=host)))
            )
            for host in hosts
        }
        database = stack.enter_context(contextlib.closing(Database.open(f"sqlite:///{tmp_path}/workers.sqlite3")))
        ports = stack.enter_context(PortAllocator.from_url(redis_url, pool=pool.name, host="db-1"))
        upgrade(database, TableNames(), pool.name)
        table, leader = Table(database, pool.name), Leader(ports)

        def rows() -> set[tuple]:
            Reconciler(ports, database, open_layout(database, TableNames()), leader=leader).run(Report())
            leader.step_down()
            found = table.run("SELECT host, port, instance, pid FROM plugin_runners WHERE runtime_state = 'ready'")
            return {tuple(row.values()) for row in found}

        def start() -> dict[str, list[int]]:
            found = {}
            for host, url in urls.items():
                process, found[host] = started([*orchestrator, str(tmp_path / host), url, "4", "org-1"])
                stack.callback(kill, process)
                running.append(process)
            return found

        running: list[subprocess.Popen] = []
        assert start() == {"web-1": [], "web-2": []}
        before = rows()
        stack.callback(kill_groups, [pid for *_, pid in before])
        assert sorted(host for host, *_ in before) == ["web-1"] * 4 + ["web-2"] * 4
        assert sorted(instance for _, _, instance, _ in before) == list(range(8))
        for process in running:
            kill(process)
        forget_leases(redis_url, pool)
        found = start()
        assert {(host, port) for host in hosts for port in found[host]} == {(host, port) for host, port, *_ in before}
        assert rows() == before


def of_host(far: FarHost, host: str, redis_url: str, pool: PoolSpec, state: Path) -> tuple[list[str], dict[str, str]]:
    """Return the words that begin a command on a host, this one or the far one, and its environment.

    Both reach Redis by its Unix socket: a namespace of networks has the files of the others.
    """
    is_near = host == "web-1"
    variables = {
        "ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name, "ALLOCATOR_HOST": host,
        "ALLOCATOR_ADVERTISE": far.near_address if is_near else far.address, "XDG_STATE_HOME": str(state / host),
        "PYTHONPATH": str(PACKAGE.parents[1]),
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    return [] if is_near else far.command, kept | variables


def serving(arguments: list[str], environment: dict[str, str], stack: contextlib.ExitStack) -> str:
    """Start the API on a loopback port of a host; return its URL."""
    process = subprocess.Popen(
        [*arguments, sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0"],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    stack.callback(process.stderr.close)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    for line in process.stderr:
        if found := re.search(r" on (http[^\s;]+)", line):
            return found[1]
    raise AssertionError("the API does not serve")


ASK = """
import json, sys, urllib.request
url, *orgs = sys.argv[1:]
def got(address):
    return urllib.request.urlopen(address, timeout=30).read()
for org in orgs:
    place = json.loads(got(f"{url}/v1/resolve/@hay%2Fplugin-email/{org}"))
    print(org, place["address"], int(got(f"http://{place['address']}:{place['port']}/")))
"""
"""Asks where organisations' workers are, and then the workers themselves for their pids."""


def test_a_worker_of_another_machine_answers_at_the_address_that_resolve_gives(
    orchestrator: list[str], redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    """Two machines joined by one network: each sends requests to the workers of both, whichever orchestrator asks."""
    orgs = {"web-1": "org-near", "web-2": "org-far"}
    with FarHost() as far, contextlib.ExitStack() as stack:
        addresses = {"org-near": far.near_address, "org-far": far.address}
        ways, urls, pids = {}, {}, {}
        for host, org in orgs.items():
            ways[host] = arguments, environment = of_host(far, host, redis_url, pool, tmp_path)
            urls[host] = serving(arguments, environment, stack)
            process, _ = started([*arguments, *orchestrator, str(tmp_path / org), urls[host], "1", org])
            stack.callback(kill, process)
        for lease in httpx.get(f"{urls['web-1']}/v1/leases").json()["leases"]:
            pids[lease["org"]] = lease["pid"]
        stack.callback(kill_groups, pids.values())
        assert set(pids) == set(addresses)
        for host, (arguments, environment) in ways.items():
            asking = [*arguments, sys.executable, "-c", ASK, urls[host], *addresses]
            answers = {tuple(line.split()) for line in run(asking, tmp_path, environment).splitlines()}
            assert answers == {(org, address, str(pids[org])) for org, address in addresses.items()}
