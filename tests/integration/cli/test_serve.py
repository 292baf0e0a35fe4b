"""`serve` and `token` as an operator runs them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Allocator


class Serving:
    """A running `allocator serve`: its URL, and what it said."""

    def __init__(self, allocator: Allocator, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", *arguments],
            env=allocator.environment(**variables),
            cwd=allocator.state,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.printed: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.printed.append(line)
            if found := re.search(r" on (https?://\S+);", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.printed))
        self._reader = threading.Thread(target=lambda: self.printed.extend(self.process.stderr or []))
        self._reader.start()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()
        return code


@contextlib.contextmanager
def serving(allocator: Allocator, *arguments: str, **variables: str) -> Iterator[Serving]:
    running = Serving(allocator, *arguments, **variables)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGKILL)


def test_it_serves_until_a_signal_and_leaves_cleanly_with_streams_open(allocator) -> None:
    with serving(allocator) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        lease = http.post("/v1/leases", json={"plugin": "email", "org": "org-1"})
        assert lease.status_code == 201
        assert allocator("show", "org-1/email", "--format", "json").out
        with http.stream("GET", "/v1/events") as events:
            next(events.iter_raw())
            assert server.end() == 0
    assert "Traceback" not in "".join(server.printed)


def test_ctrl_c_ends_it_too(allocator) -> None:
    with serving(allocator) as server:
        httpx.get(server.url + "/healthz")
        assert server.end(signal.SIGINT) == 0


def test_what_it_logs_is_a_json_object_a_line_with_what_it_is_about_and_no_token(allocator) -> None:
    json_only = {"Content-Type": "application/json"}
    with serving(allocator) as server, httpx.Client(base_url=server.url, headers=json_only) as http:
        claimed = http.post("/v1/leases", json={"plugin": "email", "org": "org-1"})
        token, lease = claimed.headers["Allocator-Token"], claimed.json()
        path = f"/v1/leases/{lease['host']}/{lease['port']}"
        http.patch(path, json={"state": "ready"}, headers={"Allocator-Token": token})
        http.delete(path, headers={"Allocator-Token": token})
        server.end()
    lines = [json.loads(line) for line in server.printed]
    about = {name: lease[name] for name in ("org", "plugin", "host", "port", "fence")}
    assert [line["message"].partition(" ")[0] for line in lines] == ["serving", "claimed", "renewed", "released"]
    assert about.items() <= lines[1].items()
    assert token not in "".join(server.printed)


def test_beyond_loopback_it_wants_credentials(allocator) -> None:
    done = allocator("serve", "--listen", "0.0.0.0:0")
    assert done.code == 78
    assert "--tokens-file" in done.err
    assert done.err.count("\n") == 1


def test_a_token_opens_what_its_scope_covers_and_is_never_shown(allocator, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    tokens = {
        scope: allocator("token", f"my-{scope}", "--scope", scope, "--file", str(file)).out.strip()
        for scope in ("read", "lease", "admin")
    }
    assert file.stat().st_mode & 0o077 == 0
    assert not any(token in file.read_text() for token in tokens.values())
    again = allocator("token", "my-read", "--file", str(file))
    assert (again.code, again.out) == (2, "")
    with serving(allocator, "--tokens-file", str(file)) as server:
        assert httpx.get(server.url + "/v1/leases").status_code == 401
        for scope, allowed in (("read", 403), ("lease", 201), ("admin", 201)):
            headers = {"Authorization": f"Bearer {tokens[scope]}"}
            body = {"plugin": "email", "org": f"org-{scope}"}
            assert httpx.get(server.url + "/v1/leases", headers=headers).status_code == 200
            assert httpx.post(server.url + "/v1/leases", json=body, headers=headers).status_code == allowed
        kept = [line for line in file.read_text().splitlines() if not line.startswith("my-lease ")]
        file.write_text("\n".join(kept))
        revoked = {"Authorization": f"Bearer {tokens['lease']}"}
        assert httpx.get(server.url + "/v1/leases", headers=revoked).status_code == 401
        server.end()
    assert not any(token in "".join(server.printed) for token in tokens.values())


def test_a_page_under_another_name_cannot_use_a_loopback_server(allocator) -> None:
    with serving(allocator) as server:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            answer = httpx.get(server.url + "/v1/leases", headers=headers)
            assert (answer.status_code, answer.json()["type"]) == (421, "urn:portlease:problem:misdirected")
            assert answer.json()["detail"].endswith("or start it with --tokens-file")
        assert httpx.get(server.url.replace("127.0.0.1", "localhost") + "/v1/leases").status_code == 200


def test_a_taken_address_names_who_has_it(allocator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = allocator("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.code == 73
    assert "listens on" in done.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--listen", "nonsense"), 78),
        (("--listen", "127.0.0.1:99999"), 78),
        (("--listen", "192.0.2.1:0", "--tokens-file", "tokens"), 78),
        (("--tokens-file", "none"), 78),
        (("--tokens-file", "."), 78),
        (("--tls-cert", "only.pem"), 78),
        (("--tls-cert", "none.pem", "--tls-key", "none.pem"), 78),
        (("--tls-cert", "tokens", "--tls-key", "tokens"), 78),
        (("--rate", "many"), 2),
    ],
)
def test_settings_that_cannot_be_right_are_one_line(allocator, arguments, code) -> None:
    (allocator.state / "tokens").write_text("# none\n")
    done = allocator("serve", "--listen", "127.0.0.1:0", *arguments)
    assert done.code == code, done.err
    assert [line for line in done.err.splitlines() if "names no credential" not in line and "clear text" not in line][
        1:
    ] == []


@pytest.mark.parametrize("text", ["one two", "name read zzzz", "name root " + "a" * 64, "\xff"])
def test_a_garbled_tokens_file_is_refused_with_its_line(allocator, text: str) -> None:
    (allocator.state / "tokens").write_text("# fine\n" + text, encoding="latin-1")
    done = allocator("serve", "--listen", "127.0.0.1:0", "--tokens-file", "tokens")
    assert done.code == 78
    assert "tokens" in done.err
    assert "a" * 64 not in done.err


def test_tls_by_files(allocator, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    arguments = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    arguments += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(arguments, check=True, capture_output=True)
    with serving(allocator, "--tls-cert", str(certificate), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(server.url + "/healthz", verify=trust).json() == {"status": "ok"}
        server.end()


def test_an_answer_does_not_wait_for_an_acknowledgement(tmp_path: Path) -> None:
    """Each answer took 40 ms: its second half waited for the acknowledgement of the first."""
    from allocator.api.application import create_app
    from allocator.api.server import run_server

    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[int] = []

    class Watched:
        family = listener.family

        def setsockopt(self, level: int, option: int, value: int) -> None:
            listener.setsockopt(level, option, value)
            with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
                seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            raise InterruptedError

    from allocator import AsyncPortAllocator

    with listener, pytest.raises(InterruptedError):
        run_server(create_app(AsyncPortAllocator.from_url(f"unix://{tmp_path}/none")), Watched())
    assert seen == [1]
