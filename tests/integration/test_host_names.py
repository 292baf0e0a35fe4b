"""The promise of a host's name: one port namespace. Containers, clones and reboots as namespaces of one machine.

A container is a process in a network and a process namespace of its own; a clone, or the machine after a reboot, has
another boot id besides, which is put over `/proc` in a mount namespace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from allocator.operations.listing import host_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import PoolSpec, PortAllocator

ROOT = Path(__file__).parents[2]
HOST = "web-1"
PROGRAM = """
import sys
from allocator import PortAllocator
from allocator.model.errors import AllocatorError
ports = PortAllocator.from_url(sys.argv[1], pool=sys.argv[2], host=sys.argv[3])
leases = {}
print("up", flush=True)
for line in sys.stdin:
    what, plugin = line.split()
    try:
        if what == "claim":
            leases[plugin] = ports.claim(plugin, org="o")
        else:
            (leases[plugin],) = ports.renew(leases[plugin])
        print("port", leases[plugin].port, flush=True)
    except AllocatorError as error:
        print(type(error).__name__, error, flush=True)
"""


def can_unshare() -> bool:
    arguments = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"]
    try:
        return subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_unshare(), reason="namespaces need root and unshare(1)")


class Container:
    """A program in namespaces of its own, which claims and renews as it is asked."""

    def __init__(self, url: str, pool: str, boot: Path | None) -> None:
        python = [sys.executable, "-P", "-c", PROGRAM, url, pool, HOST]
        mount = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
        over = ["sh", "-c", mount, str(boot)] if boot else []
        arguments = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", *over, *python]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.read() == "up"

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, what: str, plugin: str = "email") -> str:
        assert self.process.stdin
        self.process.stdin.write(f"{what} {plugin}\n")
        self.process.stdin.flush()
        return self.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def container(redis_url: str, pool: PoolSpec, boot: Path | None = None) -> Iterator[Container]:
    one = Container(redis_url, pool.name, boot)
    try:
        yield one
    finally:
        one.kill()


@pytest.fixture(params=["container", "machine"])
def other_boot(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Return the boot id of whoever comes second, or None for a container beside the first."""
    if request.param == "container":
        return None
    path = tmp_path / "boot_id"
    path.write_text("12345678-1234-4123-8123-123456789abc\n")
    return path


def test_what_starts_again_under_its_name_has_it_at_once_and_ends_what_it_left(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, other_boot: Path | None
) -> None:
    with container(redis_url, pool) as first:
        port, left = first.ask("claim"), first.ask("claim", "stripe")
        assert left.startswith("port ")
    with container(redis_url, pool, other_boot) as again:
        assert again.ask("claim") == port
        assert [lease.plugin for lease in ports.leases(host=HOST)] == ["email"]
        assert again.ask("claim", "stripe") == left


def test_a_second_one_beside_a_first_that_renews_is_refused_and_the_first_is_left_alone(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, other_boot: Path | None
) -> None:
    with container(redis_url, pool) as first, container(redis_url, pool, other_boot) as second:
        port = first.ask("claim")
        before = ports.run(host_identity(pool.name, HOST))
        refused = second.ask("claim")
        assert refused.startswith("HostConflictError ")
        assert "--host or ALLOCATOR_HOST" in refused
        assert second.ask("claim", "stripe").startswith("HostConflictError ")
        assert first.ask("renew") == port
        assert [lease.plugin for lease in ports.leases(host=HOST)] == ["email"]
        assert ports.run(host_identity(pool.name, HOST)) == before


def test_who_took_the_name_over_too_early_loses_it_to_the_one_that_still_renews(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, other_boot: Path | None
) -> None:
    """Between two renewals of the first nothing shows that it lives; its next one re-asserts what is free."""
    with container(redis_url, pool) as first:
        port = first.ask("claim")
        with container(redis_url, pool, other_boot) as second:
            assert second.ask("claim", "stripe").startswith("port ")
            assert first.ask("renew") == port
            assert {lease.plugin for lease in ports.leases(host=HOST)} == {"email", "stripe"}
            assert first.ask("claim", "slack").startswith("port ")
            assert second.ask("claim", "discord").startswith("HostConflictError ")


def test_what_starts_again_has_the_ports_that_were_left_behind_for_any_of_its_workers(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, other_boot: Path | None
) -> None:
    ports.apply_pool(replace(pool, last=pool.first + 1))
    with container(redis_url, pool) as first:
        assert first.ask("claim").startswith("port ")
        assert first.ask("claim", "stripe").startswith("port ")
        assert first.ask("claim", "slack").startswith("ExhaustedError ")
    with container(redis_url, pool, other_boot) as again:
        assert again.ask("claim", "slack").startswith("port ")
        assert [lease.plugin for lease in ports.leases(host=HOST)] == ["slack"]
