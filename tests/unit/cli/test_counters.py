"""The counters of `top`, at any width."""

from __future__ import annotations

from allocator.cli.pictures import SIGNS, Look, counters, cut


def test_no_counter_is_cut_at_any_width() -> None:
    counts = dict.fromkeys(SIGNS, 7)
    for columns in range(24, 140):
        rows = [one.text for one in counters(counts, Look(columns=columns, unicode=True, now=0.0))]
        assert rows == [cut(one, columns) for one in rows]
        assert sum(one.count(" 7 ") for one in rows) == len(counts)
