"""What a person and a pre-start hook get from `claim`, `renew` and `release`."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from servers import Server, client_of, wait_until

from allocator.protocol.keys import lease_key

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Allocator

    from allocator import PoolSpec, PortAllocator


def test_claim_prints_the_port_and_prints_it_again_when_the_hook_runs_twice(allocator: Allocator) -> None:
    first = allocator("claim", "email", "--org", "org-123")
    assert (first.code, first.err) == (0, "")
    assert first.out == allocator("claim", "email", "--org", "org-123").out
    assert first.out.strip().isdecimal()


def test_claim_as_json_has_the_promised_keys_and_ls_the_same_without_the_token(allocator: Allocator) -> None:
    claimed = json.loads(allocator("claim", "email", "--org", "org-123", "--label", "a=b", "--format", "json").out)
    keys = {"pool", "host", "port", "org", "plugin", "instance", "state", "fence", "ttl_s", "expires_at", "token"}
    assert keys <= claimed.keys()
    assert claimed["labels"] == {"a": "b"}
    listed = json.loads(allocator("ls", "--format", "json").out)
    assert [one.keys() for one in listed] == [claimed.keys() - {"token"}]


def test_show_writes_labels_as_text_and_a_strangers_without_what_moves_a_terminal(
    allocator: Allocator, redis_url: str, pool: PoolSpec
) -> None:
    def labels(port: str) -> str:
        line = next(line for line in allocator("show", port).out.splitlines() if line.startswith("labels"))
        return line.removeprefix("labels").strip()

    bare = allocator("claim", "slack", "--org", "o").out.strip()
    assert labels(bare) == "-"
    port = allocator("claim", "email", "--org", "o", "--label", "health=/health", "--label", "team=a b").out.strip()
    assert labels(port) == "health=/health, team=a b"
    with redis.Redis.from_url(redis_url) as client:
        key = lease_key(pool.name, "web-1", port)
        client.set(key, client.get(key).replace(b"/health", rb"/\u001b[2J\n"), keepttl=True)
    assert labels(port) == "health=/?[2J?, team=a b"


def test_shell_and_env_formats_can_be_evaluated(allocator: Allocator) -> None:
    env = allocator("claim", "custom-1", "--org", "o", "--format", "env").out
    shell = allocator("claim", "custom-1", "--org", "o", "--format", "shell").out
    port = dict(line.split("=") for line in env.splitlines())["PORT"]
    text = subprocess.run(
        ["sh", "-c", f"{shell} echo $CUSTOM_1_PLUGIN_PORT"], capture_output=True, text=True, check=True
    )
    assert text.stdout.strip() == port


def test_the_environment_hints_a_port_and_garbage_there_names_the_variable(
    allocator: Allocator, pool: PoolSpec
) -> None:
    wanted = str(pool.last)
    assert allocator("claim", "email", "--org", "o", EMAIL_PLUGIN_PORT=wanted).out.strip() == wanted
    refused = allocator("claim", "email", "--org", "p", EMAIL_PLUGIN_PORT="many")
    assert refused.code == 2
    assert "EMAIL_PLUGIN_PORT" in refused.err


def test_release_gives_the_port_back_and_reports_it_when_it_had_ended(allocator: Allocator) -> None:
    port = allocator("claim", "email", "--org", "o").out.strip()
    assert allocator("release", port).code == 0
    assert json.loads(allocator("ls", "--format", "json").out) == []
    again = allocator("release", port)
    assert (again.code, again.out) == (0, "")
    assert "nothing to release" in again.err


@pytest.mark.parametrize("target", ["port", "worker", "--all"])
def test_renew_and_release_take_ports_workers_or_all(allocator: Allocator, target: str) -> None:
    port = allocator("claim", "email", "--org", "o").out.strip()
    name = {"port": port, "worker": "o/email"}.get(target, target)
    assert allocator("renew", name).code == 0
    assert allocator("release", name).code == 0
    assert json.loads(allocator("ls", "--format", "json").out) == []


def test_renew_can_change_the_ttl(allocator: Allocator) -> None:
    port = allocator("claim", "email", "--org", "o").out.strip()
    assert allocator("renew", port, "--ttl", "10m").code == 0
    assert json.loads(allocator("show", port, "--format", "json").out)["ttl_s"] == 600


def renewing(allocator: Allocator, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "allocator", "renew", *arguments]
    return subprocess.Popen(command, env=allocator.environment(**variables), stderr=subprocess.PIPE, text=True)


def test_renew_every_goes_on_until_the_process_ends(allocator: Allocator) -> None:
    port = allocator("claim", "email", "--org", "o", "--ttl", "30s").out.strip()
    first = saved_expiry(allocator)
    with (
        subprocess.Popen(["sleep", "600"]) as process,
        renewing(allocator, port, "--every", "200ms", "--pid", str(process.pid)) as renewal,
    ):
        wait_until(lambda: saved_expiry(allocator) > first + 1, "it was not renewed several times")
        process.kill()
        assert renewal.wait(timeout=60) == 0


def test_renew_every_outlasts_a_redis_that_is_silent_for_a_while(allocator: Allocator) -> None:
    with Server() as server, subprocess.Popen(["sleep", "60"]) as process:
        server.ready()
        at = {"ALLOCATOR_REDIS_URL": server.url, "ALLOCATOR_POOL": "sdk-v2", "ALLOCATOR_CONNECT_TIMEOUT": "300ms"}
        port = allocator("claim", "email", "--org", "o", **at).out.strip()
        with renewing(allocator, port, "--every", "100ms", "--pid", str(process.pid), **at) as renewal:
            first = saved_expiry(allocator)
            wait_until(lambda: saved_expiry(allocator) > first, "it was never renewed")
            server.process.send_signal(signal.SIGSTOP)
            assert "trying on" in renewal.stderr.readline()
            server.process.send_signal(signal.SIGCONT)
            before = saved_expiry(allocator)
            wait_until(lambda: saved_expiry(allocator) > before, "it was not renewed any more")
            process.terminate()
            _, err = renewal.communicate(timeout=60)
    assert renewal.returncode == 0
    assert err == f"allocator: process {process.pid} has ended; its leases end by their TTL\n"


def saved_expiry(allocator: Allocator) -> float:
    (file,) = allocator.state.glob("allocator/leases/*.json")
    return json.loads(file.read_text())["expires_at"]


def listed(allocator: Allocator) -> dict[str, Any]:
    (lease,) = json.loads(allocator("ls", "--format", "json").out)
    return lease


def test_renew_of_all_goes_on_with_the_others_when_one_is_lost(allocator: Allocator) -> None:
    gone, kept = (allocator("claim", name, "--org", "o", "--format", "json").out for name in ("email", "stripe"))
    lease, other = json.loads(gone), json.loads(kept)
    token = {"ALLOCATOR_TOKEN": lease["token"], "XDG_STATE_HOME": str(allocator.state / "elsewhere")}
    assert allocator("release", str(lease["port"]), **token).code == 0
    with (
        subprocess.Popen(["sleep", "600"]) as process,
        renewing(allocator, "--all", "--every", "100ms", "--pid", str(process.pid)) as renewal,
    ):
        wait_until(lambda: listed(allocator)["expires_at"] > other["expires_at"], "the other one was not renewed")
        process.kill()
        _, err = renewal.communicate(timeout=60)
    assert renewal.returncode == 73
    assert f"the lease of o/email#0 on web-1:{lease['port']} has ended" in err
    assert listed(allocator)["port"] == other["port"]
    again = allocator("renew", "--all")
    assert (again.code, again.err) == (0, "")


def test_renew_of_all_without_a_lease_reports_it_and_ends(allocator: Allocator) -> None:
    done = allocator("renew", "--all", "--every", "1h")
    assert done.code == 0
    assert "nothing to renew" in done.err


def test_release_of_all_passes_over_what_others_have_now(allocator: Allocator, tmp_path: Path) -> None:
    lease = json.loads(allocator("claim", "email", "--org", "o", "--format", "json").out)
    port = str(lease["port"])
    allocator("claim", "stripe", "--org", "o")
    elsewhere = {"XDG_STATE_HOME": str(tmp_path / "elsewhere")}
    assert allocator("release", port, ALLOCATOR_TOKEN=lease["token"], **elsewhere).code == 0
    assert allocator("claim", "email", "--org", "p", "--port", port, **elsewhere).code == 0
    stale = allocator("release", port)
    assert stale.code == 73
    assert "p/email#0" in stale.err
    assert allocator("release", "--all").code == 0
    assert [one["org"] for one in json.loads(allocator("ls", "--format", "json").out)] == ["p"]
    assert list(allocator.state.glob("allocator/leases/*")) == []


def test_another_ttl_leaves_what_the_holder_has_written_since(allocator: Allocator, ports: PortAllocator) -> None:
    lease = json.loads(allocator("claim", "email", "--org", "o", "--format", "json").out)
    (known,) = ports.leases()
    ports.renew(replace(known, token=lease["token"], state="ready", labels={"a": "b"}), rewrite=True)
    assert allocator("renew", str(lease["port"]), "--ttl", "10m").code == 0
    (after,) = ports.leases()
    assert (after.state, after.labels, after.ttl_ms) == ("ready", {"a": "b"}, 600_000)


def test_the_token_of_another_host_renews_and_releases_and_a_wrong_one_does_not(
    allocator: Allocator, tmp_path: Path
) -> None:
    lease = json.loads(allocator("claim", "email", "--org", "o", "--format", "json").out)
    port, elsewhere = str(lease["port"]), str(tmp_path / "elsewhere")
    without = allocator("release", port, XDG_STATE_HOME=elsewhere)
    assert without.code == 73
    assert "o/email#0" in without.err
    wrong = allocator("release", port, "--token", "0" * 32, XDG_STATE_HOME=elsewhere)
    assert wrong.code == 73
    assert allocator("renew", port, "--token", lease["token"], XDG_STATE_HOME=elsewhere).code == 0
    assert allocator("release", port, XDG_STATE_HOME=elsewhere, ALLOCATOR_TOKEN=lease["token"]).code == 0


def test_a_worker_that_is_leased_elsewhere_is_refused_with_the_address_and_the_time(
    allocator: Allocator, tmp_path: Path
) -> None:
    allocator("claim", "email", "--org", "o")
    second = allocator("claim", "email", "--org", "o", "--host", "web-2", XDG_STATE_HOME=str(tmp_path / "two"))
    assert second.code == 73
    assert "already has a lease on web-1:" in second.err


def test_an_explicit_port_that_is_leased_names_its_holder(allocator: Allocator) -> None:
    port = allocator("claim", "email", "--org", "org-456").out.strip()
    refused = allocator("claim", "stripe", "--org", "o", "--port", port)
    assert refused.code == 73
    assert f"port {port} on web-1 is held by org-456/email#0 until" in refused.err


def test_wait_returns_as_soon_as_a_port_is_released(allocator: Allocator, pool: PoolSpec, ports: PortAllocator) -> None:
    leases = [ports.claim("email", org=f"org-{number}") for number in range(pool.size)]
    full = allocator("claim", "email", "--org", "late")
    assert full.code == 75
    assert "the next can free up in" in full.err
    threading.Timer(1.0, ports.release, [leases[7]]).start()
    assert allocator("claim", "email", "--org", "late", "--wait", "20s").out.strip() == str(leases[7].port)


def test_lease_files_are_the_owners_alone_and_the_token_is_nowhere_else(allocator: Allocator, tmp_path: Path) -> None:
    lease = json.loads(allocator("claim", "email", "--org", "o", "--format", "json").out)
    (file,) = allocator.state.glob("allocator/leases/*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    everything = "".join(
        done.out + done.err
        for done in (
            allocator("ls", "--format", "json"),
            allocator("show", str(lease["port"])),
            allocator("who", str(lease["port"])),
            allocator("events"),
            allocator("doctor"),
        )
    )
    assert lease["token"] not in everything


def test_a_lease_that_ended_is_claimed_anew_with_another_token(allocator: Allocator) -> None:
    first = json.loads(allocator("claim", "email", "--org", "o", "--format", "json").out)
    allocator("release", str(first["port"]), "--token", first["token"], XDG_STATE_HOME=str(allocator.state / "x"))
    second = json.loads(allocator("claim", "email", "--org", "o", "--format", "json").out)
    assert second["token"] != first["token"]
    assert second["fence"] > first["fence"]


def test_a_claim_whose_lease_file_cannot_be_written_leaves_no_lease(allocator: Allocator) -> None:
    (allocator.state / "allocator").mkdir(parents=True)
    (allocator.state / "allocator" / "leases").write_text("a file where a directory belongs")
    refused = allocator("claim", "email", "--org", "o")
    assert refused.code == 78
    assert f"{allocator.state}/allocator/leases is not a folder" in refused.err
    assert json.loads(allocator("ls", "--format", "json").out) == []


def test_ctrl_c_while_waiting_ends_without_a_traceback_and_without_a_lease(
    allocator: Allocator, pool: PoolSpec, ports: PortAllocator
) -> None:
    for number in range(pool.size):
        ports.claim("email", org=f"org-{number}")
    arguments = [sys.executable, "-m", "allocator", "claim", "email", "--org", "late", "--wait", "60s"]
    with subprocess.Popen(
        arguments, env=allocator.environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as waiting:
        line = f"alloc:{{{pool.name}}}:waiters:web-1"
        wait_until(lambda: client_of(ports.store).zcard(line), "nobody waits")
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out, err) == (130, b"", b"")
    assert len(ports.leases()) == pool.size


def test_a_port_whose_holder_listens_is_held_and_waited_for(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec
) -> None:
    lease = ports.claim("email", org="org-1")
    arguments = ("claim", "stripe", "--org", "org-2", "--port", str(lease.port))
    listener = socket.create_server(("127.0.0.1", lease.port))
    with listener:
        refused = allocator(*arguments)
        assert refused.code == 73
        assert f"port {lease.port} on web-1 is held by org-1/email#0" in refused.err
        command = [sys.executable, "-m", "allocator", *arguments, "--wait", "50s"]
        waiting = subprocess.Popen(command, env=allocator.environment(), stdout=subprocess.PIPE, text=True)
        line = f"alloc:{{{pool.name}}}:waiters:web-1"
        wait_until(lambda: client_of(ports.store).zcard(line), "nobody waits")
        ports.release(lease)  # a moment before its socket
        wait_until(lambda: client_of(ports.store).zcard(line), "the waiter left")
    out, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, f"{lease.port}\n")


def test_several_ports_are_bound_to_the_process_that_claims_them_again(
    allocator: Allocator, ports: PortAllocator
) -> None:
    arguments = ("claim", "email", "--org", "o", "--ports", "http,debug")
    first = allocator(*arguments, "--pid", str(os.getppid()))
    again = allocator(*arguments, "--pid", str(os.getpid()), "--ttl", "60s", "--label", "a=b")
    assert (again.code, again.out) == (0, first.out)
    found = {(lease.pid, lease.ttl_ms, lease.labels.get("a")) for lease in ports.leases()}
    assert found == {(os.getpid(), 60_000, "b")}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--ports", "a,b", "--record"), "--ports and --record do not go together"),
        (("--ports", "a.b,a_b"), "the ports a.b and a_b would both be PORT_A_B"),
    ],
)
def test_several_ports_that_cannot_be_are_refused(allocator: Allocator, arguments: tuple[str, ...], what: str) -> None:
    done = allocator("claim", "email", "--org", "o", *arguments)
    assert done.code == 2
    assert what in done.err


def test_ports_that_are_not_contiguous_are_not_passed_off_as_such(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec
) -> None:
    ports.claim("stripe", org="o", port=pool.first + 1)
    arguments = ("claim", "email", "--org", "o", "--ports", "a,b")
    assert allocator(*arguments).code == 0
    done = allocator(*arguments, "--contiguous")
    assert done.code == 73
    assert "not contiguous" in done.err


def test_a_port_that_a_shrunken_pool_has_no_more_is_released_by_its_number(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec
) -> None:
    port = allocator("claim", "email", "--org", "o", "--port", str(pool.last)).out.strip()
    ports.apply_pool(replace(pool, last=pool.last - 1))
    for command in ("show", "who", "renew"):
        done = allocator(command, port)
        assert (done.code, done.err) == (0, "")
    assert allocator("release", port).code == 0
    assert ports.leases() == []
    assert allocator("show", port).code in {0, 2}


def test_one_host_and_key_have_the_same_instance_again(allocator: Allocator, ports: PortAllocator) -> None:
    arguments = ("claim", "email", "--org", "o", "--instance", "auto", "--key")

    def claimed(key: str, host: str = "web-1") -> tuple[int, int]:
        done = allocator(*arguments, key, "--host", host, "--format", "json")
        assert done.code == 0, done.err
        lease = json.loads(done.out)
        return lease["instance"], lease["port"]

    first, second, other = claimed("a"), claimed("b"), claimed("a", "web-2")
    assert [first[0], second[0], other[0]] == [0, 1, 2]
    assert (claimed("a"), claimed("a", "web-2"), claimed("b")) == (first, other, second)
    assert allocator("release", str(first[1])).code == 0
    assert json.loads(allocator(*arguments[:-1], "--format", "json").out)["instance"] == 3
    assert claimed("a") == first
    assert allocator(*arguments, "a b").code == 2
    assert allocator("claim", "email", "--org", "o", "--key", "a").code == 2
    assert len(ports.leases()) == 4


def test_three_hosts_with_the_same_hook_have_an_instance_each_and_the_same_again(allocator: Allocator) -> None:
    def hook(host: str) -> tuple[int, int]:
        arguments = ("claim", "email", "--org", "org-123", "--instance", "auto", "--host", host, "--format", "json")
        lease = json.loads(allocator(*arguments).out)
        return lease["instance"], lease["port"]

    first = [hook(host) for host in ("web-1", "web-2", "web-3")]
    assert [instance for instance, _ in first] == [0, 1, 2]
    assert len({port for _, port in first}) == 1  # a port is unique on its host
    assert [hook(host) for host in ("web-1", "web-2", "web-3")] == first


def test_run_takes_the_instance_of_its_host_or_key_again(allocator: Allocator) -> None:
    run = ("run", "email", "--org", "o", "--instance", "auto", "--restart", "never")
    instances = ("--", sys.executable, "-c", "import sys; print(sys.argv[1])", "{instance}")
    assert [allocator(*run, *instances).out for _ in range(2)] == ["0\n", "0\n"]
    assert allocator(*run, "--key", "second", *instances).out == "1\n"
    assert allocator(*run, "--replicas", "2", *instances).code == 2
