"""The value of `ip_local_reserved_ports` that `doctor` prints keeps what others reserved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from allocator.kernel.sockets import reserved_with

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "5556-5599"),
        ("8080,9148", "5556-5599,8080,9148"),
        ("5500-5560", "5500-5599"),
        ("5600-5610", "5556-5610"),
        ("5556-5599", "5556-5599"),
        ("1000-1001,5570,65535", "1000-1001,5556-5599,65535"),
    ],
)
def test_what_is_reserved_already_stays(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ip_local_reserved_ports").write_text(f"{before}\n")
    assert reserved_with(5556, 5599, tmp_path) == after
