"""What repeats in the log of a server: one line a minute of each kind, with the number of the others."""

from __future__ import annotations

import logging

import pytest

from allocator.api.repeats import EVERY_S, RepeatFilter


class Log:
    def __init__(self) -> None:
        self.now = 1_000.0
        self._filter = RepeatFilter(lambda: self.now)

    def write(
        self, sentence: str, *values: object, level: int = logging.WARNING, error: Exception | None = None
    ) -> str:
        record = logging.LogRecord("allocator.api", level, "here.py", 1, sentence, values, None)
        record.error = error
        return record.getMessage() if self._filter.filter(record) else ""


def test_a_flood_is_one_line_a_minute_that_counts_the_others() -> None:
    log = Log()
    assert log.write("no room for %s", "a") == "no room for a"
    assert {log.write("no room for %s", number) for number in range(500)} == {""}
    log.now += EVERY_S
    assert log.write("no room for %s", "b") == "no room for b (500 more like it since the line before)"
    log.now += EVERY_S
    assert log.write("no room for %s", "c") == "no room for c"


@pytest.mark.parametrize(
    "other",
    [("another sentence", logging.WARNING, None), ("one", logging.ERROR, None), ("one", logging.WARNING, OSError())],
)
def test_another_sentence_level_or_error_is_another_kind(other) -> None:
    log = Log()
    sentence, level, error = other
    assert log.write("one")
    assert log.write(sentence, level=level, error=error)


def test_what_is_no_warning_is_never_counted() -> None:
    log = Log()
    assert [log.write("claimed", level=logging.INFO) for _ in range(3)] == ["claimed"] * 3


def test_strangers_cannot_make_it_remember_without_end() -> None:
    log = Log()
    for number in range(5_000):
        assert log.write(f"kind {number}")
    assert len(log._filter._kinds) <= 1_000
