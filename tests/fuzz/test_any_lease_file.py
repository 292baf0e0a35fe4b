"""Anything where lease files are: a lease that can be used, or one line that names the file, without waiting."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from fuzzing import accepted, any_bytes, any_json, any_text, examples
from hypothesis import example, given
from hypothesis import strategies as st

from allocator import Lease
from allocator.agent.bound import process_of
from allocator.client.lease_files import LeaseFiles
from allocator.model.errors import AllocatorError, ConfigurationError
from allocator.model.names import WorkerId
from allocator.model.small_files import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKER = WorkerId("org-1", "email")
TOKEN = "0123456789abcdef" * 2
LEASE = Lease(
    pool="p", host="web-1", port=6000, worker=WORKER, fence=7, ttl_ms=30_000, granted_at=1.5, expires_at=31.5,
    pid=1, pid_started=2, boot="b", namespaces="1-2", labels={"a": "b"}, token=TOKEN,
)  # fmt: skip
FIELDS = {
    "pool": "p", "host": "web-1", "port": 6000, "worker": "org-1/email#0", "state": "ready", "fence": 7,
    "ttl_ms": 30_000, "granted_at": 1.5, "expires_at": 31.5, "token": TOKEN, "pid": 1, "labels": {"a": "b"},
}  # fmt: skip
_numbers = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def files(root: Path) -> Iterator[LeaseFiles]:
    directory = root / str(next(_numbers))
    directory.mkdir(mode=0o700)
    yield LeaseFiles(directory)
    shutil.rmtree(directory)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A lease file with members replaced or left out, cut off, with bytes changed; or any bytes."""
    how = draw(st.integers(0, 5))
    if how == 0:
        return draw(any_bytes())
    if how == 1:
        return json.dumps(draw(any_json())).encode()
    known = st.sampled_from([*FIELDS, "holder_pid", "restarts", "last_error", "boot", "pid_started"])
    fields = FIELDS | draw(st.dictionaries(known | any_text(max_size=5), any_json(), max_size=3))
    for name in draw(st.lists(known, max_size=1)):
        fields.pop(name, None)
    content = json.dumps(fields).encode()
    if draw(st.integers(0, 2)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return content


def check_all(files: LeaseFiles) -> list[Any]:
    """Read in every way that commands and the agent do."""
    found = [
        accepted(lambda: files.load("p", "web-1", 6000)),
        accepted(lambda: files.find("p", "web-1", WORKER)),
        accepted(files.all),
    ]
    return found + [accepted(lambda name=name: files.read(name)) for name in files.scan() or {}]


@given(content=contents())
@example(content=json.dumps(FIELDS | {"expires_at": float("inf")}).encode())
@example(content=json.dumps(FIELDS | {"granted_at": 1e300}).encode())
@example(content=json.dumps(FIELDS | {"fence": 10**30}).encode())
@example(content=json.dumps(FIELDS | {"token": "\n"}).encode())
@example(content=b"[" * 100_000)
@examples(200)
def test_a_lease_file_is_a_lease_or_is_named_in_one_line(root: Path, content: bytes) -> None:
    files = LeaseFiles(root / "leases")
    files.directory.mkdir(exist_ok=True)
    path = files.directory / "p@web-1@6000.json"
    path.write_bytes(content)
    for found in check_all(files):
        if isinstance(found, AllocatorError):
            assert isinstance(found, ConfigurationError)
            assert str(path) in str(found)
        for lease in found if isinstance(found, list) else [found]:
            if isinstance(lease, Lease):
                json.dumps(lease.as_json(with_token=True))
                accepted(lambda lease=lease: process_of(lease))
                files.save(lease)
    assert path.exists()


@pytest.mark.parametrize("what", ["directory", "pipe", "dangling link", "loop", "device", "huge", "unreadable"])
def test_what_is_no_file_is_named_in_one_line_without_waiting(files: LeaseFiles, what: str) -> None:
    path = files.directory / "p@web-1@6000.json"
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "huge":
        with path.open("wb") as file:
            file.truncate(MAX_FILE_BYTES + 1)
    elif what == "unreadable":
        path.symlink_to("/proc/self/mem")
    else:
        path.symlink_to({"dangling link": "nowhere", "loop": path.name, "device": "/dev/zero"}[what])
    load, find, every_one, *read = check_all(files)
    assert (find, every_one) == (None, [])  # one bad file stops nobody's other leases
    for found in (load, *read):
        assert isinstance(found, ConfigurationError)
        assert str(path) in str(found)


@given(content=any_bytes() | st.just(TOKEN.encode()) | st.just(TOKEN[:7].encode()))
@example(content=b"\xff\xfe")
@example(content=b"")
@examples(40)
def test_what_an_unfinished_claim_left_is_a_token_or_is_replaced(root: Path, content: bytes) -> None:
    files = LeaseFiles(root / "claims")
    files.begin_claim("p", "web-1", WORKER, "f" * 32)
    (path,) = files.directory.iterdir()
    path.write_bytes(content)
    token, is_mine = files.begin_claim("p", "web-1", WORKER, "e" * 32)
    assert (token, is_mine) == ((TOKEN, False) if content == TOKEN.encode() else ("e" * 32, True))
    assert path.read_text() == token
    assert files.end_claim("p", "web-1", WORKER)
    assert list(files.directory.iterdir()) == []


@given(name=any_text(max_size=60).map(lambda text: text.replace("\0", "").replace("/", "")), content=contents())
@examples(40)
def test_a_file_of_any_name_beside_them_changes_nothing(root: Path, name: str, content: bytes) -> None:
    files = LeaseFiles(root / str(next(_numbers)))
    files.save(LEASE)
    try:
        (files.directory / name).write_bytes(content)
    except (OSError, ValueError):
        return
    accepted(files.all)
    accepted(lambda: [files.read(one) for one in files.scan() or {}])
    assert files.load("p", "web-1", 6000) == LEASE or name == "p@web-1@6000.json"
