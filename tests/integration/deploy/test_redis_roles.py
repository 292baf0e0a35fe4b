"""What each role of `users.acl` can do, tried with every command; docs/explanation/security.md has the same table."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from servers import Server

from allocator import LeaseState, PoolSpec, PortAllocator
from allocator.agent.host import HostAgent
from allocator.client.lease_files import LeaseFiles
from allocator.operations.hosts import register
from allocator.operations.listing import cordon

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
ROLES = ("holder", "reader", "reconciler", "operator")
SPEC = PoolSpec(name="rights", first=24_450, last=24_493, cooldown_ms=0)
COMMANDS = {
    "ls": ("ls",),
    "show": ("show", "org-1/email#0"),
    "who": ("who", "24450"),
    "events": ("events",),
    "resolve": ("resolve", "email", "--org", "org-1"),
    "export": ("export", "json"),
    "doctor": ("doctor",),
    "pool show": ("pool", "show", "rights"),
    "pool ls": ("pool", "ls"),
    "pool history": ("pool", "history", "rights"),
    "host ls": ("host", "ls"),
    "host show": ("host", "show", "web-1"),
    "claim": ("claim", "slack", "--org", "org-2"),
    "renew": ("renew", "org-2/slack"),
    "release": ("release", "org-2/slack"),
    "run": ("run", "discord", "--org", "org-2", "--restart", "never", "--", "true"),
    "pool apply": ("pool", "apply", "pool.toml"),
    "host register": ("host", "register", "--host", "web-9"),
    "host cordon": ("host", "cordon", "web-1"),
    "host uncordon": ("host", "uncordon", "web-7"),
    "host drain": ("host", "drain", "web-7"),
    "host forget": ("host", "forget", "web-7"),
    "reconcile": ("reconcile", "--once"),
    "top": ("top", "--once"),
    "pool restore": ("pool", "restore", "--from-database"),
    "adopt": ("adopt", "--port", "PORT", "--org", "org-3", "--plugin", "crm"),
    "agent": ("agent",),
    "serve": ("serve", "--listen", "127.0.0.1:0"),
    "pool rm": ("pool", "rm", "rights", "--force", "--reason", "x"),
}
"""Every command that speaks to Redis."""
RUNNING = ("agent", "serve")
"""Those that do not end by themselves."""
ON = re.compile(r" on (?:unix:([^\s;\"]+)|(http[^\s;\"]+))")
REFUSED = re.compile(r"ACL|permission", re.IGNORECASE)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    lines = [line for line in (ROOT / "deploy/redis/users.acl").read_text().splitlines() if not line.startswith("#")]
    for role in ROLES:
        hashed = hashlib.sha256(role.encode()).hexdigest()
        lines = [
            line.replace("#" + "0" * 64, f"#{hashed}") if line.startswith(f"user {role} ") else line for line in lines
        ]
    file = tmp_path_factory.mktemp("rights") / "users.acl"
    file.write_text("\n".join([*lines, "user admin on nopass ~* &* +@all"]) + "\n")
    with Server("--aclfile", str(file)) as server:
        server.ready(username="admin", password="x")
        yield server


@pytest.fixture
def adoptable(role: str) -> Iterator[int]:
    """A worker of the days before there were leases listens on the port that `adopt` takes over: one for each role."""
    port = 24_470 + ROLES.index(role)
    with socket.create_server(("127.0.0.1", port)):
        yield port


def documented() -> dict[str, dict[str, bool]]:
    """Return the table of the document: for each command which roles can use it."""
    text = (ROOT / "docs/explanation/security.md").read_text()
    rows = re.findall(r"^\| `([a-z `,]+)` \| (yes|no) \| (yes|no) \| (yes|no) \| (yes|no) \|$", text, re.MULTILINE)
    return {
        command: dict(zip(ROLES, (argument == "yes" for argument in arguments), strict=True))
        for commands, *arguments in rows
        for command in commands.split("`, `")
    }


def reported_by(name: str, command: list[str], **surroundings: Any) -> str:
    """Return what a server or an agent reports until it runs or is refused, and then what its API answers."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **surroundings) as one:
        text = ""
        try:
            for line in one.stderr:
                text += line
                if REFUSED.search(line):
                    break
                if found := ON.search(line):
                    text += answer_of(name, *found.groups())
                    break
        finally:
            one.terminate()
            one.stderr.read()
    return text


def answer_of(name: str, socket_path: str | None, url: str | None) -> str:
    """Return what an agent answers to a claim, and `serve` to a question."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket_path), base_url=url or "http://localhost") as http:
        if name == "serve":
            return http.get("/v1/leases", timeout=60).text
        return http.post("/v1/leases", json={"plugin": "zoom", "org": "org-4"}, timeout=60).text


def test_the_table_has_every_command() -> None:
    assert documented().keys() == COMMANDS.keys()


@pytest.mark.parametrize("role", ROLES)
def test_each_role_can_do_what_the_table_states_and_no_more(
    role: str, guarded: Server, tmp_path: Path, adoptable: int
) -> None:
    guarded.client(username="admin", password="x").flushall()
    with PortAllocator.from_url(f"redis://admin:x@127.0.0.1:{guarded.port}", pool="rights", host="web-1") as ports:
        ports.apply_pool(SPEC)
        held = ports.start_heartbeats(ports.claim("email", org="org-1", ttl=600.0))
        ports.update(held, state=LeaseState.READY)
        ports.run(register(replace(ports.session.context, host="web-7"), "rights"))
        ports.run(cordon("rights", "web-7", on=True))
        (tmp_path / "pool.toml").write_text('[pool]\nname = "rights"\nfirst = 24450\nlast = 24492\n')
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        environment = kept | {
            "XDG_STATE_HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "ALLOCATOR_REDIS_URL": f"redis://{role}@127.0.0.1:{guarded.port}",
            "ALLOCATOR_REDIS_PASSWORD": role,
            "ALLOCATOR_POOL": "rights",
            "ALLOCATOR_HOST": "web-2" if role == "operator" else "web-1",
            "ALLOCATOR_DATABASE_URL": f"sqlite:///{tmp_path}/workers.sqlite3",
        }
        admin = environment | {"ALLOCATOR_REDIS_URL": f"redis://admin:x@127.0.0.1:{guarded.port}"}
        for arguments in (("db", "upgrade"), ("reconcile", "--once")):  # a row that `pool restore` reads
            subprocess.run([sys.executable, "-m", "allocator", *arguments], env=admin, check=True)
        can = {}
        for name, arguments in COMMANDS.items():
            command = [
                sys.executable,
                "-m",
                "allocator",
                *(str(adoptable) if argument == "PORT" else argument for argument in arguments),
            ]
            if name in RUNNING:
                text = reported_by(name, command, env=environment, cwd=tmp_path)
                assert "Traceback" not in text, text
                can[name] = not REFUSED.search(text)
                continue
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert "Traceback" not in done.stderr, done.stderr
            can[name] = not REFUSED.search(done.stderr + done.stdout * (name == "doctor" and role == "operator"))
        if role == "reader":  # nothing of hers is there to be renewed or released: she has no lease
            can |= {"renew": False, "release": False}
    assert can == {name: roles[role] for name, roles in documented().items()}


LACKING = {
    "xadd": "not hold leases: XADD on",
    "evalsha": "may not look: EVALSHA on",
    "zrange": "may not look: ZRANGE on",
}
"""What is reported of a holder who lacks one right."""


@pytest.mark.parametrize("right", LACKING)
@pytest.mark.parametrize("command", [("agent",), ("serve", "--listen", "127.0.0.1:0"), ("doctor",)], ids=" ".join)
def test_a_right_that_is_missing_is_reported_with_its_role(
    guarded: Server, tmp_path: Path, right: str, command: tuple[str, ...]
) -> None:
    admin = guarded.client(username="admin", password="x")
    rules = next(rule for rule in admin.execute_command("ACL", "LIST") if b"user holder " in rule).decode().split()[3:]
    admin.execute_command("ACL", "SETUSER", "lacking", "reset", "on", ">x", *rules, f"-{right}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")} | {
        "XDG_STATE_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "ALLOCATOR_REDIS_URL": f"redis://lacking:x@127.0.0.1:{guarded.port}",
    }
    arguments = [sys.executable, "-m", "allocator", *command]
    with subprocess.Popen(
        arguments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        lines = one.stdout if command == ("doctor",) else one.stderr
        found = next((line for line in lines if LACKING[right] in line), "")
        one.terminate()
        one.communicate()
    assert "give it the rules of" in found
    assert "'holder' in deploy/redis/users.acl" in found


def test_an_agent_reports_a_refused_command_once_a_minute(
    guarded: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = itertools.count(1_000.0, 0.25)
    with PortAllocator.from_url(f"redis://reader:reader@127.0.0.1:{guarded.port}", host="web-1") as ports:
        agent = HostAgent(ports, [LeaseFiles(tmp_path)], clock=lambda: next(times))
        while next(times) < 1_130.0:
            agent.step()
    refused = [record for record in caplog.records if "does not allow this user" in record.message]
    assert 1 <= len(refused) <= 4, [record.message for record in refused]
