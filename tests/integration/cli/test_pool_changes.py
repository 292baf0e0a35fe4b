"""What a person sees of a pool that changes: the effect before, the history afterwards, every live lease untouched."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from servers import client_of

from allocator.protocol.keys import history_key

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Allocator

    from allocator import PoolSpec, PortAllocator


def write(tmp_path: Path, pool: PoolSpec, *, last: int, more: str = "") -> str:
    file = tmp_path / "pool.toml"
    file.write_text(f'[pool]\nname = "{pool.name}"\nfirst = {pool.first}\nlast = {last}\nttl_min = "100ms"\n{more}')
    return str(file)


def test_a_dry_run_states_what_would_change_and_changes_nothing(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec, tmp_path: Path
) -> None:
    leases = [ports.claim("email", org="o", instance=number) for number in range(4)]
    more = f'[pool.limits]\nmax_per_org = 2\n[pool.bands]\nstripe = "{pool.first}-{pool.first}"\n'
    file = write(tmp_path, pool, last=pool.first + 1, more=more)
    before = allocator("pool", "show", pool.name).out
    seen = allocator("pool", "apply", "--dry-run", file)
    assert seen.code == 0
    assert f"pool     {pool.name} would be changed\n" in seen.out
    assert f"rule     last: {pool.last} -> {pool.first + 1}\n" in seen.out
    assert "rule     max_per_org: - -> 2\n" in seen.out
    assert "effect   2 leases keep ports outside the range until they end: o/email#2 on web-1:" in seen.out
    assert "effect   1 leases keep ports that belong to other plugins until they end: o/email#0" in seen.out
    assert "effect   organisation o has 4 leases, above its limit of 2: none is revoked" in seen.out
    assert allocator("pool", "show", pool.name).out == before
    applied = allocator("pool", "apply", file)
    assert applied.code == 0
    assert "organisation o has 4 leases, above its limit of 2" in applied.err
    assert len(ports.leases()) == 4
    assert ports.renew(*leases)
    assert allocator("claim", "email", "--org", "p").code == 75


def test_the_history_states_when_by_whom_and_what(allocator: Allocator, pool: PoolSpec, tmp_path: Path) -> None:
    for last in (pool.first + 5, pool.first + 9):
        assert allocator("pool", "apply", write(tmp_path, pool, last=last)).code == 0
    rows = json.loads(allocator("pool", "history", pool.name, "--format", "json").out)
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert "@web-1" in rows[2]["by"]
    assert rows[2]["changes"] == f"last: {pool.first + 5} -> {pool.first + 9}"
    assert allocator("pool", "apply", write(tmp_path, pool, last=pool.first + 9)).code == 0
    assert len(json.loads(allocator("pool", "history", pool.name, "--format", "json").out)) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[pool.limits]\nmax_per_org = -1\n", "max_per_org -1 is out of bounds"),
        ('[pool.limits]\nmax_per_org = "2"\n', "pool.limits.max_per_org"),
        ("[pool.limits]\nmax_per_team = 2\n", "max_per_team"),
        ("[pool.limits.orgs]\n\"a b\" = 2\n", "organisation"),
        ('[pool.bands]\nx = "5-"\n', "not a range of ports"),
        ('[pool.bands]\nx = "1-2"\n', "outside"),
        ('durability = "disk"\n', "durability"),
    ],
)  # fmt: skip
def test_a_pool_file_that_cannot_be_right_names_file_and_field(
    allocator: Allocator, pool: PoolSpec, tmp_path: Path, more: str, message: str
) -> None:
    file = write(tmp_path, pool, last=pool.last, more=more)
    for arguments in (("--dry-run", file), (file,)):
        refused = allocator("pool", "apply", *arguments)
        assert refused.code == 78
        assert refused.err.startswith(f"allocator: {file}: ")
        assert message in refused.err


def test_a_pool_without_history_is_a_clear_error(allocator: Allocator) -> None:
    assert allocator("pool", "history", "nothing").code == 78


def test_an_entry_of_another_program_in_the_history_hides_no_other(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec, tmp_path: Path
) -> None:
    client_of(ports.store).xadd(
        history_key(pool.name), {"version": "9" * 30, "by": "\x1b[31m" + "x" * 100_000, "rules": "$(id)\n"}
    )
    assert allocator("pool", "apply", write(tmp_path, pool, last=pool.first + 5)).code == 0
    done = allocator("pool", "history", pool.name)
    *_, foreign, last = done.out.splitlines()
    assert "this entry cannot be read" in foreign
    assert len(foreign) < 2_000
    assert f"last: {pool.last} -> {pool.first + 5}" in last
    assert "\x1b" not in done.out


def test_an_event_of_another_program_is_one_line_of_bounded_length(
    allocator: Allocator, ports: PortAllocator, pool: PoolSpec
) -> None:
    client_of(ports.store).xadd(f"alloc:{{{pool.name}}}:events", {"type": "x\x1b[31m\n", "host": "y" * 1_000_000})
    (line,) = allocator("events", "--pool", pool.name).out.splitlines()[-1:]
    assert "x?[31m?" in line
    assert len(line) < 2_000
