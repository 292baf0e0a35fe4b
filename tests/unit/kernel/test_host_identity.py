"""The promise: one port namespace has one identity, in words that fit a key and a script's arguments."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from allocator.kernel import identity
from allocator.kernel.identity import default_host, host_identity
from allocator.model.names import check_name

if TYPE_CHECKING:
    from pathlib import Path


def test_each_part_has_plain_characters() -> None:
    here = host_identity()
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in (here.machine, here.boot, here.netns))


def test_another_process_of_this_host_has_the_same_identity() -> None:
    code = "from allocator.kernel.identity import host_identity; print(host_identity())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(host_identity())


def test_the_machine_id_is_never_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(identity, "_MACHINE_ID_FILES", (tmp_path / "machine-id",))
    first = identity._machine()
    assert first not in "0123456789abcdef0123456789abcdef"
    (tmp_path / "machine-id").write_text("f123456789abcdef0123456789abcdef\n")
    assert identity._machine() != first


@pytest.mark.parametrize("content", ["", "\n", "uninitialized\n", None])
def test_a_container_without_a_machine_id_is_known_by_its_boot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "machine-id").write_text(content)
    monkeypatch.setattr(identity, "_MACHINE_ID_FILES", (tmp_path / "machine-id",))
    monkeypatch.setattr(identity, "boot_id", lambda: "one")
    one = identity._machine()
    monkeypatch.setattr(identity, "boot_id", lambda: "two")
    assert identity._machine() != one


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("web-1", "web-1"),
        ("web-1.example.org.", "web-1.example.org"),
        ("web 1:a{b}", "web-1-a-b"),
        ("büro", "b-ro"),
        ("-_.", "localhost"),
        ("", "localhost"),
        ("x" * 300, "x" * 128),
    ],
)
def test_any_host_name_becomes_a_valid_one(monkeypatch: pytest.MonkeyPatch, reported: str, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: reported)
    assert default_host() == check_name("host", name)
