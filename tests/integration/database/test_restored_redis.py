"""A Redis that is restored from an old copy: leases, fences and leaders go back in time; no worker loses its port."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from runners_table import Table
from servers import Server
from watchers import NAMES, Watching, wait_until

from allocator import PortAllocator
from allocator.database.connection import Database
from allocator.database.leader import Leader
from allocator.database.upgrade import upgrade

if TYPE_CHECKING:
    from pathlib import Path

    from allocator import PoolSpec


def test_workers_rows_and_the_leadership_are_right_after_redis_went_back_in_time(
    pool: PoolSpec, tmp_path: Path
) -> None:
    with (
        Server() as server,
        closing(Database.open(f"sqlite:///{tmp_path}/rows.db")) as database,
        PortAllocator.from_url(server.ready().url, pool=pool.name, host="web-1") as ports,
        ExitStack() as stack,
    ):
        upgrade(database, NAMES)
        table = Table(database, pool.name)
        ports.apply_pool(pool)
        first = Leader(ports)
        first.take()
        before = ports.claim("email", org="org-1", ttl=1.0)
        stays = ports.start_heartbeats(ports.claim("email", org="org-2", ttl=2.0))
        server.client().save()
        copy = shutil.copy(server.directory / "dump.rdb", tmp_path)
        # What the copy does not know: another leader, another port of a worker, a new worker.
        first.give_up()
        watching = stack.enter_context(Watching(server.url, pool.name, database))
        ports.release(before)
        moved = ports.start_heartbeats(ports.claim("email", org="org-1", port=before.port + 5, ttl=2.0))
        newer = ports.start_heartbeats(ports.claim("stripe", org="org-3", ttl=2.0))
        held = (stays, moved, newer)
        wait_until(lambda: len(table.addresses()) == len(held), "it does not follow")
        server.crash()
        shutil.copy(copy, server.directory / "dump.rdb")
        server.start()
        server.ready()
        known = [one.lease.fence for one in held]

        def are_back() -> bool:
            found = {(str(one.worker), one.port) for one in ports.leases()}
            return {(str(one.lease.worker), one.lease.port) for one in held} <= found

        wait_until(are_back, "a worker lost its port")
        others = [ports.claim("crm", org=f"org-{number}") for number in range(5)]
        assert not {one.port for one in others} & {one.lease.port for one in held}
        assert min(one.fence for one in others) > max(known)
        wait_until(lambda: watching.seen.leading, "nobody leads any more")

        def are_right() -> bool:
            living = {(one.host, one.port) for one in ports.leases()}
            return {address[:2] for address in table.addresses().values() if address[2] != "stopped"} == living

        wait_until(are_right, "the rows are not those of the leases")
        assert watching.error is None
        assert [one.lease.port for one in held] == [stays.port, before.port + 5, newer.port]
        ports.end_held(*held)
