"""A pool and a database side by side, and statements run as another program would run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from runners_table import Table

from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.reconciler import Reconciler
from allocator.database.upgrade import open_layout, upgrade
from allocator.model.tables import TableNames

if TYPE_CHECKING:
    from collections.abc import Iterator

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
