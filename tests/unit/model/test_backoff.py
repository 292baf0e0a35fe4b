"""Pauses between tries: one policy for all that try again."""

from __future__ import annotations

import random

from allocator.model.backoff import Backoff


def test_pauses_double_up_to_the_longest_and_are_spread() -> None:
    backoff, rng = Backoff(first=1.0, longest=10.0, least=0.5), random.Random(7)
    for failures, ceiling in enumerate((1.0, 2.0, 4.0, 8.0, 10.0, 10.0), start=1):
        pauses = [backoff.pause(failures, rng) for _ in range(200)]
        assert ceiling / 2 <= min(pauses) < ceiling * 0.6
        assert ceiling * 0.9 < max(pauses) <= ceiling


def test_a_pause_after_any_number_of_failures_is_the_longest_at_most() -> None:
    assert Backoff(first=0.1, longest=2.0, least=1.0).pause(10**9) == 2.0
