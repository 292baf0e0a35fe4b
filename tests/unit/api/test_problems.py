"""Every error of the library has a problem of its own, whose type never changes by accident."""

from __future__ import annotations

from allocator.api.problems import KINDS, PLAIN_KINDS
from allocator.model import errors


def every_error() -> set[type[errors.AllocatorError]]:
    found = {errors.AllocatorError}
    while True:
        more = {sub for one in found for sub in one.__subclasses__() if sub.__module__ == errors.__name__} - found
        if not more:
            return found
        found |= more


def test_no_error_is_without_a_problem() -> None:
    assert every_error() == set(KINDS)


def test_types_are_unique() -> None:
    names = [kind.name for kind in (*KINDS.values(), *PLAIN_KINDS)]
    assert sorted(names) == sorted(set(names))
