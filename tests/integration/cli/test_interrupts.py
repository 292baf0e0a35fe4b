"""Ctrl-C and `kill -9` at any point of a claim: nothing is left, or the next claim of the worker gets what is."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Allocator

    from allocator import PortAllocator

CLAIM = [sys.executable, "-m", "allocator", "claim", "email", "--org", "org-1"]


class Wire:
    """Passes a command's words to Redis and back.

    Args:
        server: The Unix socket of Redis.
        path: Where to listen.
        on_answer: Called with the number of each answer and its words before the answer is passed on.
    """

    def __init__(self, server: str, path: Path, on_answer: Callable[[int, bytes], None]) -> None:
        self.url = f"unix://{path}"
        self._server, self._on_answer = server, on_answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._seen = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                command, _ = self._listener.accept()
                redis = socket.socket(socket.AF_UNIX)
                redis.connect(self._server)
                for source, target, answers in ((command, redis, False), (redis, command, True)):
                    threading.Thread(target=self._pass, args=(source, target, answers), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while text := source.recv(65_536):
                if answers:
                    self._seen += 1
                    self._on_answer(self._seen, text)
                target.sendall(text)
            target.shutdown(socket.SHUT_WR)


def claim_with(
    allocator: Allocator, redis_url: str, path: Path, at: int, number: int, **options: object
) -> subprocess.CompletedProcess[str]:
    """Claim, and send a signal to the command when its Nth answer has come but has not been read."""
    started = threading.Event()
    commands: list[subprocess.Popen[str]] = []

    def hit(answer: int, text: bytes) -> None:
        if answer != at:
            return
        started.wait(20)
        commands[0].send_signal(number)
        if not options:
            commands[0].wait(20)

    with Wire(redis_url.removeprefix("unix://"), path, hit) as wire:
        command = subprocess.Popen(
            [*CLAIM, "--redis-url", wire.url],
            env=allocator.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        commands.append(command)
        started.set()
        out, err = command.communicate(timeout=60)
    return subprocess.CompletedProcess(CLAIM, command.returncode, out, err)


ANSWERS = range(1, 9)


@pytest.mark.parametrize("at", ANSWERS)
def test_ctrl_c_at_any_answer_of_redis_leaves_nothing(
    allocator: Allocator, redis_url: str, ports: PortAllocator, tmp_path: Path, at: int
) -> None:
    done = claim_with(allocator, redis_url, tmp_path / "wire", at, signal.SIGINT)
    if done.returncode == 0:  # it had no Nth answer
        assert [str(lease.port) for lease in ports.leases()] == [done.stdout.strip()]
        return
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert ports.leases() == []
    assert [path for path in allocator.state.glob("allocator/leases/*") if path.name] == []


@pytest.mark.parametrize("at", ANSWERS)
def test_a_claim_that_is_killed_is_finished_by_the_next_one_of_its_worker(
    allocator: Allocator, redis_url: str, ports: PortAllocator, tmp_path: Path, at: int
) -> None:
    claim_with(allocator, redis_url, tmp_path / "wire", at, signal.SIGKILL)
    granted = [lease.port for lease in ports.leases()]
    again = allocator("claim", "email", "--org", "org-1")
    assert (again.code, again.err) == (0, "")
    assert granted in ([], [int(again.out)])
    assert [str(lease.port) for lease in ports.leases()] == [again.out.strip()]
    assert len(list(allocator.state.glob("allocator/leases/*"))) == 1
    assert allocator("release", again.out.strip()).code == 0


def test_a_background_command_ignores_ctrl_c(
    allocator: Allocator, redis_url: str, ports: PortAllocator, tmp_path: Path
) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    done = claim_with(allocator, redis_url, tmp_path / "wire", 3, signal.SIGINT, preexec_fn=ignore)
    assert (done.returncode, done.stderr) == (0, "")
    assert [str(lease.port) for lease in ports.leases()] == [done.stdout.strip()]


HIT_ON_IMPORT = """
import os, signal, sys
class Hit:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Hit())
"""
MODULES = ["allocator.cli.app", "typer", "allocator.cli.claim", "allocator.client.blocking", "hiredis"]


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_it_loads_is_without_a_traceback(
    allocator: Allocator, ports: PortAllocator, tmp_path: Path, module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIT_ON_IMPORT.format(module=module))
    environment = allocator.environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run(CLAIM, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert ports.leases() == []


def test_ctrl_c_after_the_port_was_printed_comes_too_late(
    allocator: Allocator, ports: PortAllocator, tmp_path: Path
) -> None:
    hit = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    (tmp_path / "sitecustomize.py").write_text(hit)
    environment = allocator.environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run(CLAIM, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [str(lease.port) for lease in ports.leases()] == [done.stdout.strip()]


def test_many_hooks_at_once_for_one_worker_all_print_its_one_port(allocator: Allocator) -> None:
    hooks = [
        subprocess.Popen(CLAIM, env=allocator.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    printed = {(*hook.communicate(timeout=60), hook.returncode) for hook in hooks}
    (lease,) = json.loads(allocator("ls", "--format", "json").out)
    assert printed == {(f"{lease['port']}\n", "", 0)}
    assert allocator("release", "--all").code == 0
    assert list(allocator.state.glob("allocator/leases/*")) == []


def test_a_hook_that_is_undone_does_not_take_the_port_from_another_one(
    allocator: Allocator, redis_url: str, ports: PortAllocator, tmp_path: Path
) -> None:
    """The second hook shares the first one's token; Ctrl-C in the first must not end what the second printed."""
    second: list[str] = []

    def claim_beside(answer: int, text: bytes) -> None:
        if text.startswith(b"*4\r\n$7\r\ngranted") and not second:
            second.append(allocator("claim", "email", "--org", "org-1").out.strip())
            first.send_signal(signal.SIGINT)
            first.wait(20)

    with Wire(redis_url.removeprefix("unix://"), tmp_path / "wire", claim_beside) as wire:
        first = subprocess.Popen(
            [*CLAIM, "--redis-url", wire.url],
            env=allocator.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert first.communicate(timeout=60) == ("", "")
    assert first.returncode == 130
    assert [str(lease.port) for lease in ports.leases()] == second
    assert allocator("renew", second[0]).code == 0
