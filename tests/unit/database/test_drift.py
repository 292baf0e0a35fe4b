"""Each difference by its kind and what is done about it, without a Redis or a database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allocator import Lease, LeaseState, WorkerId
from allocator.database.drift import Action, Kind, how_it_ended, of_lease, of_row
from allocator.database.rows import Row, RowKey
from allocator.database.urls import parse_database_url, redacted
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.inspect import Whereabouts

WORKER = WorkerId("org-1", "email")
KEY = RowKey("org-1", "email", 0)
LEASE = Lease(pool="p", host="web-1", port=5556, worker=WORKER, fence=10, ttl_ms=30_000, granted_at=0, expires_at=30)
ROW = Row(KEY, "web-1", 5556, "starting", 10, None, 30.0, 0, None)


def ended(how: Reply, fence: int = 10) -> Whereabouts:
    return Whereabouts("web-1", 5556, fence, how, None)


def test_a_row_that_states_what_the_lease_states_is_no_difference() -> None:
    assert of_lease(LEASE, KEY, ROW) is None


def test_a_lease_without_a_row_is_written() -> None:
    found = of_lease(LEASE, KEY, None)
    assert found is not None
    assert (found.kind, found.action) == (Kind.MISSING_ROW, Action.WRITE)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"port": 5557}, Kind.WRONG_PORT),
        ({"host": "web-2"}, Kind.WRONG_PORT),
        ({"host": None}, Kind.WRONG_PORT),
        ({"state": "ready"}, Kind.WRONG_STATE),
        ({"state": "stopped"}, Kind.WRONG_STATE),
        ({"fence": 9}, Kind.WRONG_STATE),
        ({"fence": None}, Kind.WRONG_STATE),
        ({"pid": 5}, Kind.WRONG_STATE),
        ({"restart_count": 1}, Kind.WRONG_STATE),
        ({"last_error": "boom"}, Kind.WRONG_STATE),
    ],
    ids=str,
)
def test_what_differs_has_its_kind_and_is_written(change: dict, kind: Kind) -> None:
    found = of_lease(LEASE, KEY, replace(ROW, **change))
    assert found is not None
    assert (found.kind, found.action) == (kind, Action.WRITE)


def test_a_row_of_a_newer_fence_is_left() -> None:
    found = of_lease(LEASE, KEY, replace(ROW, fence=11, port=7))
    assert found is not None
    assert (found.kind, found.action) == (Kind.WRONG_PORT, Action.NONE)


@pytest.mark.parametrize("how", [Reply.RELEASED, Reply.DECLINED, Reply.EXPIRED, Reply.REPLACED])
@pytest.mark.parametrize("fence", [10, 11])
def test_a_live_row_whose_lease_has_ended_is_stale(how: Reply, fence: int) -> None:
    found = of_row(ROW, ended(how, fence), None)
    assert found is not None
    assert (found.kind, found.action) == (Kind.STALE_ROW, Action.STOP)
    assert found.stop is not None
    assert (found.stop.fence, found.stop.state) == (fence, "stopped")
    assert of_row(replace(ROW, state="stopped"), ended(how, fence), None) is None


@pytest.mark.parametrize("known", [None, ended(Reply.UNKNOWN, 0), ended(Reply.RELEASED, 9)])
def test_a_live_row_that_nothing_explains_is_left(known: Whereabouts | None) -> None:
    found = of_row(ROW, known, None)
    assert found is not None
    assert (found.kind, found.action, found.stop) == (Kind.UNKNOWN_ROW, Action.NONE, None)


def test_a_live_row_at_an_address_that_another_has_gives_way_unless_it_is_newer() -> None:
    tenant = replace(LEASE, worker=WorkerId("org-2", "email"), fence=12)
    found = of_row(ROW, ended(Reply.UNKNOWN, 0), tenant)
    assert found is not None
    assert (found.kind, found.action) == (Kind.DUPLICATE_LIVE, Action.STOP)
    newer = of_row(replace(ROW, fence=13), ended(Reply.UNKNOWN, 0), tenant)
    assert newer is not None
    assert (newer.kind, newer.action, newer.stop) == (Kind.DUPLICATE_LIVE, Action.NONE, None)


@pytest.mark.parametrize("state", list(LeaseState)[:4])
def test_only_a_worker_that_was_not_well_again_ends_in_error(state: LeaseState) -> None:
    failed = replace(ROW, state=str(state), last_error="boom")
    expected = "error" if state in {LeaseState.STARTING, LeaseState.DEGRADED} else "stopped"
    assert how_it_ended(failed, ended(Reply.RELEASED))[0] == expected
    assert how_it_ended(replace(failed, last_error=None), ended(Reply.RELEASED)) == ("stopped", None)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:s3cret@db/app",
        "postgresql://app:s3cr@et@db/app",
        "postgresql://app:s/3cret@db/app",
        "postgresql://db/app?user=app&password=s3cret",
        "postgresql://:s3cret@db/app",
    ],
)
def test_a_url_is_shown_without_its_password(url: str) -> None:
    assert "3cr" not in redacted(url)
    assert "db/app" in redacted(url)


def test_a_password_from_elsewhere_fills_in_where_the_url_has_none() -> None:
    assert parse_database_url("postgresql://app@db/app", password="x").password == "x"
    assert parse_database_url("postgres://app:y@db/app", password="x").password == "y"
