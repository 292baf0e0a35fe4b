"""A digest is that of `hashlib`, wherever it comes from."""

from __future__ import annotations

import hashlib

import pytest

from allocator.model import encodings


@pytest.mark.parametrize("homes", [encodings._HOMES, {"sha1": (), "sha256": ("_no_such_module",)}])
def test_digests_are_those_of_hashlib(monkeypatch, homes) -> None:
    monkeypatch.setattr(encodings, "_HOMES", homes)
    assert encodings.sha1(b"a script") == hashlib.sha1(b"a script").hexdigest()
    assert encodings.sha256(b"a machine") == hashlib.sha256(b"a machine").hexdigest()
