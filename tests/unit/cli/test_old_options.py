"""Options by their old names still work, and a worker's own command is left alone."""

from __future__ import annotations

import pytest

from allocator.cli.app import OLD_OPTIONS, with_new_names


@pytest.mark.parametrize(("old", "new"), OLD_OPTIONS.items())
def test_an_old_name_is_the_new_one(old: str, new: str) -> None:
    assert with_new_names(["run", old, "x"]) == ["run", new, "x"]
    assert with_new_names(["run", f"{old}=x"]) == ["run", f"{new}=x"]


def test_a_workers_command_keeps_its_own_options() -> None:
    given = ["run", "email", "--", "worker", "--adjacent", "--procfile=x"]
    assert with_new_names(given) == given
