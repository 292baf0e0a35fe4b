"""What a command says to the person who watches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from allocator.cli.context import Console

if TYPE_CHECKING:
    import pytest


def test_a_name_with_control_characters_makes_no_second_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shown, printed = "the row of a\nallocator: all well\x1b[2K cannot", "the row of a?allocator: all well?[2K cannot"
    console = Console()
    console(shown)
    assert capsys.readouterr().err == f"allocator: {printed}\n"
    console.log = logging.getLogger("allocator.test")
    with caplog.at_level(logging.INFO, "allocator.test"):
        console(shown)
    assert caplog.messages == [printed]
