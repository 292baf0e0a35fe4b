"""Lease files remember a lease whole, and those of an earlier version can still be read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from allocator.client.lease_files import LeaseFiles
from allocator.model.leases import Lease
from allocator.model.names import WorkerId

if TYPE_CHECKING:
    from pathlib import Path

LEASE = Lease(
    pool="sdk-v2", host="web-1", port=5556, worker=WorkerId("org-1", "email"), fence=1, ttl_ms=30_000,
    granted_at=1.0, expires_at=31.0, pid=42, pid_started=777, boot="b-1", namespaces="1-2", restarts=3,
    last_error="it broke", labels={"team": "blue"}, token="a" * 32,
)  # fmt: skip


def test_a_saved_lease_is_loaded_as_it_was(tmp_path: Path) -> None:
    files = LeaseFiles(tmp_path)
    files.save(LEASE)
    loaded = files.load("sdk-v2", "web-1", 5556)
    assert loaded == LEASE
    assert loaded.token == LEASE.token


def test_a_file_without_the_newer_members_is_read(tmp_path: Path) -> None:
    files = LeaseFiles(tmp_path)
    files.save(LEASE)
    (path,) = tmp_path.iterdir()
    newer = {"pid_started", "boot", "namespaces", "restarts", "last_error"}
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name not in newer}
    path.write_text(json.dumps(fields | {"pid": None, "labels": {}}))
    loaded = files.load("sdk-v2", "web-1", 5556)
    assert (loaded.pid, loaded.pid_started, loaded.restarts, loaded.last_error) == (None, None, 0, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes in the directories of others")
def test_what_root_writes_in_the_directory_of_a_user_is_that_users(tmp_path: Path) -> None:
    os.chown(tmp_path, 65_534, 65_533)
    LeaseFiles.of_another(tmp_path).save(LEASE)
    (path,) = tmp_path.iterdir()
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65_534, 65_533, 0o600)


@pytest.mark.parametrize("plugin", ["@hay/plugin-email", "@a/" + "b" * 211, "Email"])
def test_an_unfinished_claim_of_whatever_plugin_is_remembered_as_its_own(tmp_path: Path, plugin: str) -> None:
    files, worker = LeaseFiles(tmp_path), WorkerId("org-1", plugin)
    assert files.begin_claim("sdk-v2", "web-1", worker, "a" * 32) == ("a" * 32, True)
    assert files.begin_claim("sdk-v2", "web-1", worker, "b" * 32) == ("a" * 32, False)
    other = WorkerId("org-1", plugin.swapcase() if plugin == "Email" else "plugin-email")
    assert files.begin_claim("sdk-v2", "web-1", other, "c" * 32) == ("c" * 32, True)
    names = {path.name.lower() for path in tmp_path.iterdir()}
    assert len(names) == 2, "on a disk that ignores case they would be one"
    assert files.end_claim("sdk-v2", "web-1", worker)
