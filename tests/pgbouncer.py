"""A real PgBouncer in transaction mode before a test's PostgreSQL: each transaction may be on another session."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psycopg
from servers import free_port, installed
from sqlalchemy import make_url

START_S = 60.0
NOBODY = 65_534


class PgBouncer:
    """One PgBouncer on a loopback port, which gives its clients a few sessions of one server in turn.

    Args:
        server_port: The port of the PostgreSQL behind it.
        sessions: How many sessions it has for all clients of a database.
        user: The role of these sessions.
    """

    def __init__(self, server_port: int, sessions: int = 2, user: str = "postgres") -> None:
        binary = installed("pgbouncer")
        if binary is None:
            raise FileNotFoundError("pgbouncer is not installed")
        self.directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self.directory.chmod(0o755)
        self.port = free_port()
        settings = self.directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server_port} user={user}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = any\nadmin_users = postgres\n"
            f"pool_mode = transaction\ndefault_pool_size = {sessions}\nmax_client_conn = 200\nserver_round_robin = 1\n"
        )
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([binary, str(settings)], stdout=log, stderr=log, cwd="/", **as_nobody)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with psycopg.connect(self.url("pgbouncer"), connect_timeout=2):
                    return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)

    def url(self, database: str) -> str:
        """Return the URL of one of the databases, through it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def reconnect(self) -> None:
        """Let it make new sessions, as after a change of a setting of the role or the database."""
        with psycopg.connect(self.url("pgbouncer"), autocommit=True) as console:
            console.execute(b"RECONNECT")

    def close(self) -> None:
        """End it and remove its files."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Reach:
    """How a test reaches its databases: as they are, or through a PgBouncer in transaction mode for each.

    Args:
        pooled: Whether through PgBouncer.
    """

    def __init__(self, *, pooled: bool) -> None:
        self.is_pooled = pooled
        self.poolers: list[PgBouncer] = []

    def __call__(self, url: str) -> str:
        """Return the URL by which a database is reached, in the role of the one that is given."""
        if not self.is_pooled:
            return url
        found = make_url(url)
        assert found.port is not None
        assert found.database is not None
        self.poolers.append(PgBouncer(found.port, user=str(found.username)))
        return self.poolers[-1].url(found.database)

    def new_sessions(self) -> None:
        """Let poolers begin new sessions, which have what is set for the role and the database by now."""
        for pooler in self.poolers:
            pooler.reconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pooler in self.poolers:
            pooler.close()
