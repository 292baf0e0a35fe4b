"""`allocator run`: the worker's port is leased while it lives, and free only when its whole tree is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from process_groups import process_group_members
from supervised import LEAVE, PYTHON_WORKER, WORKERS, Fleet, eventually, finish, is_running, needs_node

from allocator.kernel.processes import process_table

LOG_SIGNALS = (
    "import signal, sys, time\n"
    "for n in ('SIGHUP', 'SIGUSR1', 'SIGUSR2'):\n"
    "    signal.signal(getattr(signal, n), lambda number, _: print(signal.Signals(number).name, flush=True))\n"
    "print('set', flush=True)\n"
    "while True: time.sleep(60)"
)


@pytest.mark.parametrize("command", WORKERS)
def test_a_worker_is_ready_on_its_port_and_sigterm_leaves_no_process_and_no_lease(
    fleet: Fleet, command: list[str]
) -> None:
    process = fleet.run("--health", "/health", command=command)
    lease = fleet.lease()
    listener = fleet.listener(lease.port)
    assert process_table()[listener].group == lease.pid
    process.send_signal(signal.SIGTERM)
    status, _, _ = finish(process)
    assert status in {0, 143}, "a wrapper that dies of the signal itself says 143"
    assert fleet.ports.leases() == []
    assert process_group_members(lease.pid) == []
    assert not fleet.listening()


@needs_node
def test_the_port_belongs_to_the_grandchild_of_the_command(fleet: Fleet) -> None:
    fleet.run("--health", "/health", command=WORKERS[1].values[0])
    lease = fleet.lease()
    table, listener = process_table(), fleet.listener(lease.port)
    assert table[table[listener].parent].parent == lease.pid


def test_the_environment_shows_the_worker_its_port_and_never_a_token_or_password(fleet: Fleet) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    name = "a-word-that-nobody-may-see"
    variables = {
        "ALLOCATOR_DATABASE_URL": f"postgresql://app:{name}@db/app?sslmode=require&sslpassword={name}",
        "ALLOCATOR_DATABASE_PASSWORD": name,
        "ALLOCATOR_TOKEN": name,
        "PGPASSWORD": name,
    }
    _, out, _ = finish(fleet.run(command=[sys.executable, "-c", show], variables=variables))
    reported = json.loads(out)
    assert name not in out
    assert reported["ALLOCATOR_DATABASE_URL"] == "postgresql://app@db/app?sslmode=require"
    assert reported["ALLOCATOR_REDIS_URL"] == fleet.redis_url  # so that its library uses the same registry
    assert reported["PORT"] == reported["EMAIL_PLUGIN_PORT"] == reported["HAY_WORKER_PORT"] == str(fleet.pool.first)
    assert reported["ALLOCATOR_HOST"] == "web-1"
    assert int(reported["ALLOCATOR_FENCE"]) > 0
    assert "ALLOCATOR_TOKEN" not in reported


def test_a_worker_with_a_passed_socket_gets_no_descriptor_that_the_supervisor_inherited(fleet: Fleet) -> None:
    show = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])"
    reader, writer = os.pipe()
    command = [sys.executable, "-c", show]
    _, out, _ = finish(fleet.run("--listen-fd", command=command, pass_fds=(reader, writer)))
    os.close(reader)
    os.close(writer)
    assert json.loads(out) == [0, 1, 2, 3]


def test_a_worker_that_is_trusted_with_its_token_can_renew_by_itself(fleet: Fleet) -> None:
    show = "import os; print(os.environ['PORT'], os.environ['ALLOCATOR_TOKEN'])"
    _, out, _ = finish(fleet.run("--pass-token", command=[sys.executable, "-c", show]))
    port, token = out.split()
    assert (port, len(token)) == (str(fleet.pool.first), 32)


def test_files_of_variables_reach_the_worker_and_name_the_port_to_prefer(fleet: Fleet, tmp_path: Path) -> None:
    wanted = fleet.pool.first + 7
    (tmp_path / "plain.env").write_text(f"# ports\nexport EMAIL_PLUGIN_PORT={wanted}\n\nMODE='two words' # note\n")
    show = "import os; print(os.environ['PORT'], os.environ['MODE'])"
    _, out, _ = finish(fleet.run("--env-file", "plain.env", command=[sys.executable, "-c", show]))
    assert out == f"{wanted} two words\n"


def test_a_port_can_be_given_as_an_option_of_the_command(fleet: Fleet) -> None:
    show = "import sys; print(*sys.argv[1:])"
    for given, expected in (("--port", "a --port={}"), ("--listen=127.0.0.1:{port}", "a --listen=127.0.0.1:{}")):
        _, out, _ = finish(fleet.run("--port-arg", given, command=[sys.executable, "-c", show, "a"]))
        assert out.strip() == expected.format(fleet.pool.first)


def test_it_exits_as_the_command_did(fleet: Fleet) -> None:
    assert finish(fleet.run("--restart", "never", command=["sh", "-c", "exit 7"]))[0] == 7
    assert finish(fleet.run("--restart", "never", command=["sh", "-c", "kill -9 $$"]))[0] == 128 + signal.SIGKILL
    assert finish(fleet.run(command=["sh", "-c", "exit 0"]))[0] == 0
    assert fleet.ports.leases() == []


def test_a_program_that_the_kernel_refuses_to_start_costs_no_port(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "worker").write_text("neither a binary nor a script")
    (tmp_path / "worker").chmod(0o755)
    status, _, err = finish(fleet.run(command=["./worker"]))
    assert status == 126
    assert "'./worker' cannot be run (Exec format error)" in err
    assert fleet.events()[-1] == "released"


def test_output_is_passed_through_byte_for_byte(fleet: Fleet) -> None:
    write = "import sys; sys.stdout.buffer.write(b'o\\xff\\n\\nx'); sys.stderr.buffer.write(b'e\\xfe')"
    process = fleet.run(command=[sys.executable, "-c", write], text=False)
    out, err = process.communicate(timeout=30)
    assert out == b"o\xff\n\nx"
    assert b"e\xfe" in err


def test_signals_of_a_single_worker_are_passed_on(fleet: Fleet) -> None:
    process = fleet.run(command=[sys.executable, "-c", LOG_SIGNALS])
    assert process.stdout.readline() == "set\n"
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"


def test_a_listener_that_survives_its_shell_is_ended_before_the_port_is_released(fleet: Fleet) -> None:
    process = fleet.run("--restart", "never", command=["sh", "-c", '"$@" & wait', "sh", *PYTHON_WORKER])
    lease = fleet.lease()
    os.kill(lease.pid, signal.SIGKILL)  # the shell alone: the listener goes on
    assert finish(process)[0] == 128 + signal.SIGKILL
    assert lease.port not in fleet.listening()
    assert fleet.ports.leases() == []


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("stopped", [True, False])
def test_a_listener_that_left_the_process_group_is_ended_as_well(fleet: Fleet, how: str, stopped: bool) -> None:
    process = fleet.run("--restart", "never", command=["sh", "-c", LEAVE[how], "sh", *PYTHON_WORKER])
    lease = fleet.lease()
    listener = fleet.listener(lease.port)
    assert process_table()[listener].group != lease.pid
    if stopped:
        process.terminate()
    else:
        os.kill(lease.pid, signal.SIGKILL)
    finish(process)
    assert not is_running(listener)
    assert not fleet.listening()


def test_what_a_script_started_before_it_became_the_supervisor_is_left_alone(fleet: Fleet) -> None:
    script = f'sleep 600 & echo $!; exec {sys.executable} -m allocator run email --org org-1 -- "$@"'
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *PYTHON_WORKER], env=fleet.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    fleet.started.append(process)
    other = int(process.stdout.readline())
    fleet.lease()
    process.terminate()
    process.wait()
    assert is_running(other)
    os.kill(other, signal.SIGKILL)
    assert not fleet.listening()


def test_a_second_ctrl_c_does_not_wait_for_a_stubborn_worker(fleet: Fleet) -> None:
    stubborn = "import signal, socket, sys; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN)\n"
    stubborn += "s = socket.create_server(('', int(sys.argv[1])))\nwhile True: s.accept()"
    process = fleet.run("--stop-timeout", "10m", command=[sys.executable, "-c", stubborn, "{port}"])
    lease = fleet.lease()
    process.send_signal(signal.SIGINT)
    fleet.lease("draining")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 128 + signal.SIGKILL
    assert process_group_members(lease.pid) == []
    assert fleet.ports.leases() == []


@needs_node
def test_a_worker_is_asked_to_stop_before_it_is_made_to(fleet: Fleet, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = fleet.run("--stop-path", "/disable", command=WORKERS[1].values[0], variables={"WORKER_LOG": str(log)})
    fleet.lease()
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert log.read_text().split() == ["disable", "SIGTERM"]


def test_a_stop_while_it_waits_for_a_port_ends_it_at_once(fleet: Fleet) -> None:
    taken = [fleet.ports.claim("stripe", org=f"o-{number}") for number in range(fleet.pool.size)]
    process = fleet.run("--wait", "10m")
    assert len(taken) == fleet.pool.size
    eventually(lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) >= 3, "its claim never began")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143


def test_a_passed_socket_is_listened_on_before_the_worker_starts(fleet: Fleet) -> None:
    accept = (
        "import os, socket\n"
        "assert os.environ['LISTEN_PID'] == str(os.getpid()) and os.environ['LISTEN_FDS'] == '1'\n"
        "print(os.environ['LISTEN_FDNAMES'], flush=True)\n"
        "s = socket.socket(fileno=3)\n"
        "while True:\n"
        "    c, _ = s.accept(); c.recv(100); c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); c.close()"
    )
    process = fleet.run("--listen-fd", "--health", "/", command=[sys.executable, "-c", accept])
    assert process.stdout.readline() == "port\n"
    lease = fleet.lease()
    with socket.create_connection(("127.0.0.1", lease.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    listener = fleet.listener(lease.port)
    os.kill(lease.pid, signal.SIGKILL)
    eventually(lambda: fleet.lease().pid != lease.pid)
    assert fleet.lease().port == lease.port
    assert fleet.listener(lease.port) == listener, "the supervisor's own socket was never closed"


def test_a_passed_socket_lets_nobody_in_once_the_worker_has_closed_its_own(fleet: Fleet) -> None:
    closes = (
        "import signal, socket, time\n"
        "passed = socket.socket(fileno=3)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (passed.close(), print('closed', flush=True)))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(600)"
    )
    process = fleet.run("--listen-fd", "--stop-timeout", "60s", command=[sys.executable, "-S", "-c", closes])
    assert process.stdout.readline() == "up\n"
    lease = fleet.lease()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "closed\n"
    assert is_running(lease.pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", lease.port))
    os.kill(lease.pid, signal.SIGKILL)
    finish(process)


@needs_node
def test_node_takes_a_passed_socket(fleet: Fleet) -> None:
    command = ["node", *WORKERS[1].values[0][1:], "--listen-fd=3"]
    command.insert(1, WORKERS[1].values[0][0].replace("npx", "runner.mjs"))
    fleet.run("--listen-fd", "--health", "/health", command=command)
    assert fleet.lease().port == fleet.pool.first


MANY = (
    "import os, signal, socket, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "for number in range(300):\n"
    "    if os.fork() == 0:\n"
    "        if number % 2: os.setsid()\n"
    "        if number % 5 == 0 and os.fork(): os._exit(0)\n"
    "        time.sleep(600)\n"
    "server = socket.create_server(('', int(sys.argv[1])))\n"
    "time.sleep(600)"
)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_worker_that_forked_hundreds_and_ignores_sigterm(
    fleet: Fleet, ending: signal.Signals
) -> None:
    process = fleet.run("--stop-timeout", "200ms", command=[sys.executable, "-S", "-c", MANY, "{port}"])
    fence = fleet.lease().fence
    assert len(fleet.processes_of(fence)) > 300
    process.send_signal(ending)
    process.wait()
    eventually(lambda: not fleet.processes_of(fence))
    assert not fleet.listening()


def test_a_worker_that_closes_its_streams_is_looked_after_like_any_other(fleet: Fleet) -> None:
    closing = "import os, socket, sys, time; os.close(1); os.close(2)\n"
    closing += "server = socket.create_server(('', int(sys.argv[1])))\nwhile True: server.accept()"
    process = fleet.run(command=[sys.executable, "-S", "-c", closing, "{port}"])
    before = fleet.lease()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: fleet.lease().restarts == 1)
    assert fleet.lease().port == before.port
    process.terminate()
    assert finish(process)[0] == 143


def test_of_two_supervisors_at_once_one_runs_the_worker(fleet: Fleet) -> None:
    both = [fleet.run(), fleet.run()]
    fleet.lease()
    ended = eventually(lambda: [one for one in both if one.poll() is not None])
    assert [finish(one)[0] for one in ended] == [73]
    assert len(fleet.ports.leases()) == 1
