"""The Node client against the real server: a TypeScript orchestrator without a port map of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from api_server import served

from allocator import AsyncPortAllocator
from allocator.api.access import Access
from allocator.api.application import create_app
from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.client.heartbeats import T1, T1_SPREAD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import PoolSpec

PACKAGE = Path(__file__).parents[3] / "deploy/node"
CLIENT = PACKAGE / "index.mjs"


@pytest.fixture
def url(redis_url: str, pool: PoolSpec) -> Iterator[str]:
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator)) as found:
        yield found


def node(program: str, url: str | None, *, variables: dict[str, str] | None = None, **arguments: object) -> dict:
    """Run a program in Node, which has `ports`; returns what it printed."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed; the package nodejs of the distribution has it")
    options = json.dumps({**({"url": url} if url else {}), **arguments})
    head = f'import {{ Portlease, HeldLease, PortleaseError, canBind }} from "{CLIENT.as_uri()}";\n'
    head += f"const ports = new Portlease({options});\nconst alive = setInterval(() => {{}}, 1000);\n"
    head += "const say = (value) => { clearInterval(alive); console.log(JSON.stringify(value)); };\n"
    arguments = ["node", "--input-type=module", "-"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    done = subprocess.run(
        arguments,
        input=head + program,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment | (variables or {}),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("listen", ["127.0.0.1:{}", "0.0.0.0:{}", ":{}"])
def test_without_options_it_goes_by_the_settings_of_the_environment(url: str, pool: PoolSpec, listen: str) -> None:
    variables = {"ALLOCATOR_LISTEN": listen.format(httpx.URL(url).port), "ALLOCATOR_POOL": pool.name}
    found = node(
        """
        const lease = await ports.hold("email", { org: "org-1" });
        say({ host: lease.host });
        await lease.release();
        """,
        None,
        variables=variables | {"ALLOCATOR_HOST": "web-1"},
    )
    assert found["host"] == "web-1"


def test_a_worker_holds_a_port_reports_that_it_is_ready_and_gives_it_back(url: str, pool: PoolSpec) -> None:
    printed = node(
        """
        import http from "node:http";
        const lease = await ports.hold("email", { org: "org-1", labels: { team: "mail" } });
        const server = http.createServer((_, answer) => answer.end("ok"));
        await new Promise((up) => server.listen(lease.port, up));
        await lease.setState("ready");
        const found = await ports.resolve("email", { org: "org-1" });
        const all = [];
        for await (const one of ports.leases({ org: "org-1" })) all.push(one);
        server.close();
        await lease.release();
        say({ port: lease.port, resolved: found.port, state: all[0].state, pid: all[0].pid === process.pid });
        """,
        url,
    )
    assert printed == {"port": pool.first, "resolved": pool.first, "state": "ready", "pid": True}
    assert httpx.get(f"{url}/v1/leases").json()["leases"] == []


def test_heartbeats_keep_a_lease_beyond_its_ttl(url: str) -> None:
    printed = node(
        """
        const lease = await ports.hold("email", { org: "org-1", ttlMs: 400 });
        let beats = 0;
        await new Promise((enough) => lease.on("renewed", () => { beats += 1; if (beats === 5) enough(); }));
        const [one] = await Array.fromAsync?.(ports.leases()) ?? [(await ports.leases().next()).value];
        say({ same: one.fence === lease.fence, doubtful: lease.doubtful });
        await lease.release();
        """,
        url,
    )
    assert printed == {"same": True, "doubtful": False}


def test_a_port_that_this_machine_refuses_is_declined_and_another_one_taken(url: str, pool: PoolSpec) -> None:
    stranger = next(one for port in range(pool.first, pool.last) if (one := listening(port)))
    with stranger:
        taken = stranger.getsockname()[1]
        printed = node(
            f"""
            const lease = await ports.hold("email", {{ org: "org-1", host: "web-9", hint: {taken} }});
            say({{ port: lease.port }});
            await lease.release();
            """,
            url,
        )
    assert printed["port"] != taken
    statuses = {port["port"]: port["status"] for port in httpx.get(f"{url}/v1/hosts/web-9").json()["ports"]}
    assert statuses[taken] == "quarantined"


def listening(port: int) -> socket.socket | None:
    """Return a socket that listens on a port, or None when another test's does."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_a_lease_that_is_lost_is_reported_and_other_errors_have_their_type(url: str, pool: PoolSpec) -> None:
    printed = node(
        """
        const lease = await ports.claim("email", { org: "org-1" });
        const held = new HeldLease(ports, { ...lease, ttl_s: 0.2 });
        const lost = new Promise((told) => held.on("lost", (error) => told(error.type)));
        await ports.release(lease);
        const type = await lost;
        const refused = await ports.claim("email", { org: "org-1", port: 1 }).catch((error) => error);
        say({ type, refused: refused.type, status: refused.status, isOurs: refused instanceof PortleaseError });
        """,
        url,
    )
    assert printed == {"type": "lease-lost", "refused": "invalid-input", "status": 422, "isOurs": True}


def test_a_drain_is_reported_once_and_the_lease_is_kept_until_its_release(url: str) -> None:
    printed = node(
        f"""
        const lease = await ports.hold("email", {{ org: "org-1", ttlMs: 400 }});
        await lease.setState("ready");
        let told = 0;
        const drained = new Promise((heard) => lease.on("draining", () => {{ told += 1; heard(); }}));
        await fetch("{url}/v1/hosts/web-1/drain",
          {{ method: "POST", headers: {{ "content-type": "application/json" }} }});
        await drained;
        const refused = await lease.setState("ready").catch((error) => error.type);
        let beats = 0;
        await new Promise((enough) => lease.on("renewed", () => {{ beats += 1; if (beats === 4) enough(); }}));
        say({{ told, refused, state: lease.state, doubtful: lease.doubtful }});
        await lease.release();
        """,
        url,
    )
    assert printed == {"told": 1, "refused": "invalid-input", "state": "draining", "doubtful": False}
    assert httpx.get(f"{url}/v1/leases").json()["leases"] == []


def test_a_worker_that_drains_by_itself_is_not_notified(url: str) -> None:
    printed = node(
        """
        const lease = await ports.hold("email", { org: "org-1", ttlMs: 400 });
        let told = 0, beats = 0;
        lease.on("draining", () => { told += 1; });
        await lease.setState("draining");
        await new Promise((enough) => lease.on("renewed", () => { beats += 1; if (beats === 2) enough(); }));
        say({ told, state: lease.state });
        await lease.release();
        """,
        url,
    )
    assert printed == {"told": 0, "state": "draining"}


def test_heartbeats_are_spread_as_those_of_the_other_holders(url: str) -> None:
    printed = node(
        """
        const waits = [];
        const real = globalThis.setTimeout;
        globalThis.setTimeout = (_, ms) => { waits.push(ms); return real(() => {}, 0); };
        for (let i = 0; i < 500; i += 1) new HeldLease(ports, { ttl_s: 1000, sentAt: performance.now() - 100_000 });
        say({ first: Math.min(...waits), last: Math.max(...waits) });
        """,
        url,
    )
    ttl_ms, ago_ms, spread_ms = 1_000_000, 100_000, T1_SPREAD * 1_000_000
    earliest = (T1 - T1_SPREAD / 2) * ttl_ms - ago_ms
    assert earliest - 1_000 < printed["first"] < earliest + spread_ms / 4
    assert earliest + spread_ms * 3 / 4 < printed["last"] <= earliest + spread_ms


def test_it_carries_a_bearer_token_and_shows_it_nowhere(redis_url: str, pool, tmp_path: Path) -> None:
    token = new_api_token()
    (tmp_path / "tokens").write_text(tokens_line("node", Scope.LEASE, token) + "\n")
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, access=Access(TokensFile(tmp_path / "tokens")))) as url:
        printed = node(
            """
            const lease = await ports.hold("email", { org: "org-1" });
            const { inspect } = await import("node:util");
            say({ port: lease.port, shown: inspect(ports) + inspect(lease) });
            await lease.release();
            """,
            url,
            token=token,
        )
    assert printed["port"] == pool.first
    assert token not in printed["shown"]
