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

START_S = 60.0
NOBODY = 65_534


class PgBouncer:
    """One PgBouncer on a loopback port, which gives its clients a few sessions of one server in turn.

    Args:
        server_port: The port of the PostgreSQL behind it.
        sessions: How many sessions it has for all clients of a database.
    """

    def __init__(self, server_port: int, sessions: int = 2) -> None:
        binary = installed("pgbouncer")
        if binary is None:
            raise FileNotFoundError("pgbouncer is not installed")
        self.directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self.directory.chmod(0o755)
        self.port = free_port()
        settings = self.directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {sessions}\nmax_client_conn = 200\nserver_round_robin = 1\n"
        )
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([binary, str(settings)], stdout=log, stderr=log, cwd="/", **as_nobody)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with psycopg.connect(self.url("postgres"), connect_timeout=2, prepare_threshold=None):
                    return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)

    def url(self, database: str) -> str:
        """Return the URL of one of the databases, through it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
