"""A pool and a database side by side, and statements run as another program would run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pgbouncer import PgBouncer, Reach
from runners_table import Table
from servers import installed

from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres import Postgres

    from allocator import PortAllocator

NAMES = TableNames()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An upgraded database."""
    opened = Database.open(database_url)
    upgrade(opened, NAMES)
    yield opened
    opened.close()


@pytest.fixture
def table(database: Database, ports: PortAllocator) -> Table:
    return Table(database, ports.session.pool)


@pytest.fixture
def reconciler(database: Database, ports: PortAllocator) -> Reconciler:
    return Reconciler(ports, database, open_layout(database, NAMES), leader=Leader(ports))


@pytest.fixture
def pooled(postgres: Postgres, postgres_url: str) -> Iterator[str]:
    """The URL of an empty database through PgBouncer in transaction mode, with two sessions for all."""
    if installed("pgbouncer") is None:
        pytest.skip("pgbouncer is not installed")
    with PgBouncer(postgres.port) as pooler:
        yield pooler.url(postgres_url.rpartition("/")[2])


@pytest.fixture(params=["direct", "pooled"])
def reach(request: pytest.FixtureRequest) -> Iterator[Reach]:
    if request.param == "pooled" and installed("pgbouncer") is None:
        pytest.skip("pgbouncer is not installed")
    with Reach(pooled=request.param == "pooled") as made:
        yield made
