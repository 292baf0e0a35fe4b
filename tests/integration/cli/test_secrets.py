"""Passwords of URLs and tokens are nowhere to be seen: not in output, logs, pages, metrics, errors or process lists."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from servers import Server, client_of, free_port
from supervised import eventually

from allocator import PortAllocator
from allocator.kernel.processes import all_pids, has_variable

if TYPE_CHECKING:
    from allocator import PoolSpec

REDIS_PASSWORD = "hunter2-of-redis"
DATABASE_PASSWORD = "hunter2-of-sql"
ROUTES = ("/", "/page/page.js", "/openapi.json", "/metrics", "/no/such/route")


class Site:
    """Everything that goes on, in one state directory, with passwords in both URLs; what it wrote is in files.

    Args:
        allocator: Makes the environment.
        redis_url: With its password.
        database_url: With its password.
    """

    def __init__(self, allocator, redis_url: str, database_url: str) -> None:
        self.allocator, self.state = allocator, allocator.state
        self.variables = {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_DATABASE_URL": database_url}
        self.started: list[subprocess.Popen] = []
        self.heard: list[str] = []

    def once(self, *arguments: str, **variables: str) -> str:
        done = self.allocator(*arguments, **self.variables | variables)
        self.heard += [done.out, done.err]
        return done.out

    def start(self, *arguments: str, message: str) -> Path:
        """Start a command that stays, and wait until it says something."""
        log = self.state / f"log-{len(self.started)}"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "allocator", *arguments],
                env=self.allocator.environment(**self.variables),
                cwd=self.state,
                stdout=file,
                stderr=file,
            )
        self.started.append(process)
        eventually(lambda: message in log.read_text() or process.poll() is not None)
        assert message in log.read_text(), log.read_text()
        return log

    def processes(self) -> str:
        """Return the words of every process that belongs to it, as `ps` shows them."""
        found = ""
        for pid in all_pids():
            if has_variable(pid, "XDG_STATE_HOME", str(self.state)):
                found += Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") + "\n"
        return found

    def call_every_route(self, url: str, headers: dict[str, str]) -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
            paths = http.get("/openapi.json").json()["paths"]
            calls = [
                (method, path)
                for path, methods in paths.items()
                for method in methods
                if path not in {"/v1/events", "/v1/fleet/changes"}
            ]
            for method, path in [*calls, *(("get", route) for route in ROUTES)]:
                values = {"port": "1", "host": "web-1", "plugin": "email", "org": "org-9"}
                answer = http.request(method, re.sub(r"\{(\w+)\}", lambda name: values[name[1]], path))  # noqa: B023  # used at once
                self.heard += [answer.text, str(answer.headers)]

    def stop(self) -> None:
        for process in self.started:
            process.terminate()
        for process in self.started:
            process.wait(timeout=30)

    def everything(self) -> str:
        logs = "".join(path.read_text() for path in self.state.glob("log-*"))
        return "\n".join([*self.heard, logs, (self.state / "workers.env").read_text()])


@pytest.fixture(params=["as the user's", "as options"])
def site(request: pytest.FixtureRequest, allocator, pool: PoolSpec, postgres_url: str):
    with Server("--requirepass", REDIS_PASSWORD) as server:
        server.ready(password=REDIS_PASSWORD)
        redis_url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{server.port}"
        with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as ports:
            ports.apply_pool(pool)
            user, _, location = postgres_url.removeprefix("postgresql://").partition("@")
            url = f"postgresql://{user.partition(':')[0]}:{DATABASE_PASSWORD}@{location}"
            if request.param == "as options":
                url = f"postgresql://{user.partition(':')[0]}@{location}?password={DATABASE_PASSWORD}&sslpassword={DATABASE_PASSWORD}"
            one = Site(allocator, redis_url, url)
            one.server, one.ports = server, ports
            with ExitStack() as stack:
                stack.callback(one.stop)
                yield one


def test_nothing_that_runs_shows_a_password_or_a_token(site: Site, pool: PoolSpec) -> None:
    site.once("db", "upgrade")
    tokens = [
        site.once("token", f"a-{scope}", "--scope", scope, "--file", "tokens").strip() for scope in ("read", "admin")
    ]
    del site.heard[-4:]  # a token that is asked for is printed, once
    port = site.once("claim", "stripe", "--org", "org-2", "--record").strip()
    serving = site.start("serve", "--listen", "127.0.0.1:0", "--tokens-file", "tokens", message="serving pool")
    metrics = f"127.0.0.1:{free_port()}"
    site.start("reconcile", "--watch", "--metrics-listen", metrics, message="leading")
    site.start("agent", message="looking after")
    held = f"127.0.0.1:{free_port()}"
    worker = ["sh", "-c", "echo worker up; exec sleep 600"]
    site.start("run", "email", "--org", "org-1", "--metrics-listen", held, "--", *worker, message="worker up")
    site.start("export", "env", "--watch", "--out", "workers.env", message="is written")
    site.start("renew", port, "--every", "200ms", message="")
    site.start("events", "--follow", message="")
    site.start("resolve", "email", "--org", "org-1", "--watch", message="")
    for arguments in (
        ["ls"],
        ["who", port],
        ["show", port],
        ["doctor"],
        ["top", "--once"],
        ["host", "ls"],
        ["pool", "show"],
    ):
        site.once(*arguments)
    url = re.search(r"http://127\.0\.0\.1:\d+", serving.read_text())[0]
    for token in tokens:
        site.call_every_route(url, {"Authorization": f"Bearer {token}"})
    site.heard += [httpx.get(f"http://{address}/metrics").text for address in (metrics, held)]
    site.heard.append(site.processes())
    stream = client_of(site.ports.store)
    lease_tokens = [value.decode() for key in stream.scan_iter("*:tokens:*") for value in hash_or_text(stream, key)]
    assert len(lease_tokens) >= 3

    site.server.process.kill()
    site.server.process.wait()
    for token in tokens:
        site.call_every_route(url, {"Authorization": f"Bearer {token}"})
    eventually(lambda: "events are not read" in serving.read_text())
    for arguments in (
        ["ls"],
        ["claim", "email", "--org", "org-3"],
        ["doctor"],
        ["reconcile", "--once"],
        ["resolve", "x", "--org", "o"],
    ):
        site.once(*arguments, ALLOCATOR_CONNECT_TIMEOUT="200ms")
    broken = {
        "ALLOCATOR_DATABASE_URL": f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/x?sslpassword={DATABASE_PASSWORD}",
        "ALLOCATOR_CONNECT_TIMEOUT": "200ms",
    }
    site.once("db", "check", **broken)
    site.heard.append(site.processes())
    site.stop()

    everything = site.everything()
    assert "did not answer" in everything  # the errors were really heard
    for secret in (REDIS_PASSWORD, DATABASE_PASSWORD, *tokens, *lease_tokens):
        at = everything.find(secret)
        assert at < 0, f"{secret}: {everything[max(0, at - 200) : at + 200]}"


def hash_or_text(client, key: bytes) -> list[bytes]:
    return client.hvals(key) if client.type(key) == b"hash" else [client.get(key)]


def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(allocator) -> None:
    for url in (
        f"redis://:{REDIS_PASSWORD}@[::1",
        f"redis+what://:{REDIS_PASSWORD}@h",
        f"redis://u:{REDIS_PASSWORD}@h:99999999/0",
    ):
        done = allocator("ls", ALLOCATOR_REDIS_URL=url)
        assert done.code != 0
        assert REDIS_PASSWORD not in done.out + done.err
    for url in (f"postgresql://u:{DATABASE_PASSWORD}@h:port/x", f"what://u:{DATABASE_PASSWORD}@h/x"):
        done = allocator("db", "check", ALLOCATOR_DATABASE_URL=url)
        assert done.code != 0
        assert DATABASE_PASSWORD not in done.out + done.err
