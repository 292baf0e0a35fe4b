"""The npm package as its users get it: packed, installed into an empty project, against a real API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import redis
from api_server import served
from supervised import eventually

from allocator import AsyncPortAllocator
from allocator.api.application import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def run(words: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        words,
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


@pytest.mark.parametrize("words", [["publint", "--strict"], ["@arethetypeswrong/cli", "--pack", "."]])
def test_the_checkers_of_packages_find_nothing(words: list[str], tmp_path: Path) -> None:
    npm = program("npm")
    install = [npm, "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", str(tmp_path), words[0]]
    if subprocess.run(install, capture_output=True, check=False, timeout=300).returncode:
        pytest.skip(f"{words[0]} cannot be installed from the npm registry")
    name = {"publint": "publint", "@arethetypeswrong/cli": "attw"}[words[0]]
    copy = tmp_path / "package"
    shutil.copytree(PACKAGE, copy)
    run([str(tmp_path / "node_modules/.bin" / name), *words[1:]], copy)


ORCHESTRATOR = """
import fs from "node:fs/promises";
import { Orchestrator } from "portlease/examples/orchestrator.mjs";

const [directory, url, count] = process.argv.slice(2);
const orchestrator = new Orchestrator({ directory, url });
const found = await orchestrator.recover();
const worker = `
  const server = require("node:http").createServer((_, answer) => answer.end(String(process.pid)));
  server.listen(Number(process.argv[1]));
`;
for (let number = found.length; number < Number(count); number += 1) {
  await orchestrator.start(process.execPath, ["-e", worker, "{port}"], {
    plugin: "@hay/plugin-email", org: `org-${number}`, labels: { number: String(number) }, stdio: "ignore", ttlMs: 4000,
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


def test_a_killed_orchestrator_finds_its_workers_again_after_redis_lost_everything(
    project: Path, url: str, redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    shutil.copytree(PACKAGE / "examples", project / "node_modules/portlease/examples", dirs_exist_ok=True)
    program_file = project / "orchestrator.mjs"
    program_file.write_text(ORCHESTRATOR.replace("portlease/examples", "./node_modules/portlease/examples"))
    words = [program("node"), str(program_file), str(tmp_path), url, str(WORKERS)]

    def start() -> tuple[subprocess.Popen, list[int]]:
        process = subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    def leases() -> dict[int, tuple]:
        shown = httpx.get(f"{url}/v1/leases", params={"limit": 100}).json()["leases"]
        return {one["port"]: (one["pid"], one["state"], one["labels"]["number"], one["org"]) for one in shown}

    first, found = start()
    try:
        assert found == []
        before = leases()
        assert len(before) == WORKERS
        assert {state for _, state, _, _ in before.values()} == {"ready"}
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with redis.Redis.from_url(redis_url) as server:
            for key in server.scan_iter(f"alloc:{{{pool.name}}}:*", count=1_000):
                if b":lease:" in key or b":tokens:" in key or b":worker:" in key or b":ports:" in key:
                    server.delete(key)
        assert leases() == {}
        second, found = start()
        try:
            assert sorted(found) == sorted(before)
            assert leases() == before
            for number in range(WORKERS):
                response = httpx.get(f"{url}/v1/resolve/@hay%2Fplugin-email/org-{number}")
                assert before[response.json()["port"]][2] == str(number)
        finally:
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0
        eventually(lambda: leases() == {})
    finally:
        for pid, *_ in before.values():
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
