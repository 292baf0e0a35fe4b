"""Other users of one host: what they put in the way is neither obeyed nor followed, and costs nobody a lease.

The other users are plain uids; what they would have made is made for them, and what they could read is tried as them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import client_of
from supervised import ROOT, eventually, finish

from allocator import ConfigurationError, PortAllocator
from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.client.lease_files import LeaseFiles, _claim_name
from allocator.model.names import WorkerId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervised import Fleet

    from allocator import Lease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for several users; run the tests as root")

ANA, BOB = 61_001, 61_002
TTL_S = 6.0
SECRET = "a-word-that-nobody-else-may-see"  # made up


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that every user can enter, as pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="portlease-users-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def home(base: Path, uid: int) -> Path:
    """The state directory of a user, with the folder of lease files in it."""
    leases = base / str(uid) / "leases"
    leases.mkdir(parents=True, mode=0o700)
    for one in (leases.parent, leases):
        os.chown(one, uid, uid)
        one.chmod(0o700)
    return leases


def give(path: Path, uid: int, mode: int = 0o600) -> Path:
    os.lchown(path, uid, uid)
    if not path.is_symlink():
        path.chmod(mode)
    return path


def as_user(uid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed; the package util-linux of the distribution has it")
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def worker_of(fleet: Fleet, leases: Path, pid: int, plugin: str = "email", **arguments: object) -> Lease:
    """A lease that a user's worker has, with its file in the user's folder."""
    lease = fleet.ports.claim(plugin, org=f"org-{leases.parent.name}", pid=pid, ttl=TTL_S, **arguments)
    LeaseFiles.of_another(leases).save(lease)
    return lease


def agent(fleet: Fleet, *folders: Path) -> tuple[subprocess.Popen, list[str]]:
    arguments = [argument for folder in folders for argument in ("--leases", str(folder))]
    started = fleet.spawn("agent", *arguments)
    seen: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in started.stderr:
            seen.append(line)
            if "looking after" in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    assert ready.wait(60)
    assert started.poll() is None, "".join(seen)
    return started, seen


def lose_all_leases(fleet: Fleet) -> None:
    """Let Redis forget everything, so that the agent re-asserts its leases and writes their files again."""
    client = client_of(fleet.ports.store)
    base = f"alloc:{{{fleet.pool.name}}}"
    keys = [f"{base}:lease:web-1:{port}" for port in range(fleet.pool.first, fleet.pool.last + 1)]
    client.delete(*keys)


def fence_in(leases: Path, lease: Lease) -> int:
    found = LeaseFiles.of_another(leases).load(lease.pool, lease.host, lease.port)
    return found.fence if found else 0


# -- the agent of root with the folders of users --


def test_a_link_to_anothers_lease_file_is_neither_read_nor_written(
    fleet: Fleet, base: Path, process: subprocess.Popen
) -> None:
    ana, bob = home(base, ANA), home(base, BOB)
    lease = worker_of(fleet, ana, process.pid)
    (file,) = ana.iterdir()
    link = bob / file.name
    link.symlink_to(file)
    give(link, BOB)
    _, seen = agent(fleet, ana, bob)
    lose_all_leases(fleet)
    eventually(lambda: fence_in(ana, lease) > lease.fence, "the lease was not re-asserted")
    assert link.readlink() == file
    assert [path.name for path in bob.iterdir()] == [link.name]
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (ANA, 0o600)
    assert as_user(BOB, "cat", str(link)).returncode != 0
    assert any(str(link) in line and "symbolic link" in line for line in seen)


def test_a_hard_link_to_a_file_of_root_is_not_read(fleet: Fleet, base: Path, process: subprocess.Popen) -> None:
    bob = home(base, BOB)
    lease = fleet.ports.claim("email", org="root", pid=process.pid, ttl=300)
    mine = base / "mine"
    LeaseFiles(mine).save(lease)
    (file,) = mine.iterdir()
    os.link(file, bob / file.name)
    _, seen = agent(fleet, bob)
    eventually(
        lambda: any(str(bob / file.name) in line and "cannot be read" in line for line in seen),
        "the file was not refused",
    )
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (0, 0o600)


def test_a_folder_replaced_by_a_link_gets_no_file_and_the_lease_lives_on(
    fleet: Fleet, base: Path, process: subprocess.Popen
) -> None:
    ana = home(base, ANA)
    lease = worker_of(fleet, ana, process.pid)
    _, seen = agent(fleet, ana)
    target = base / "of-root"
    target.mkdir()
    ana.rename(ana.parent / "moved")
    give_link = ana.parent / "leases"
    give_link.symlink_to(target)
    give(give_link, ANA)
    eventually(lambda: any("is a symbolic link" in line for line in seen), "the link was not refused")
    lose_all_leases(fleet)
    again = eventually(lambda: [one for one in fleet.ports.leases() if one.fence > lease.fence])
    assert again[0].port == lease.port
    assert list(target.iterdir()) == []


def test_a_lease_is_written_with_the_rights_of_the_folders_owner(
    fleet: Fleet, base: Path, process: subprocess.Popen
) -> None:
    ana, bob = home(base, ANA), home(base, BOB)
    hers, his = worker_of(fleet, ana, process.pid), worker_of(fleet, bob, process.pid)
    bob.chmod(0o500)  # he may not write there himself; root could
    agent(fleet, ana, bob)
    lose_all_leases(fleet)
    eventually(lambda: fence_in(ana, hers) > hers.fence)
    eventually(lambda: [one for one in fleet.ports.leases(org=his.org) if one.fence > his.fence])
    assert fence_in(bob, his) == his.fence
    (file,) = ana.iterdir()
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (ANA, ANA, 0o600)
    assert as_user(ANA, "cat", str(file)).returncode == 0


@pytest.mark.parametrize("bad", ["pool", "garbage", "pipe", "folder", "no folder"])
def test_a_bad_lease_file_of_one_user_stops_nobody_elses_renewals(
    fleet: Fleet, base: Path, process: subprocess.Popen, bad: str
) -> None:
    ana, bob = home(base, ANA), home(base, BOB)
    started, seen = agent(fleet, ana, bob)
    leases = [worker_of(fleet, ana, process.pid), worker_of(fleet, bob, process.pid, "stripe")]

    def expiry(lease: Lease) -> float:
        """When the worker's lease of the same port ends: one that a loaded machine let lapse is re-asserted."""
        found = {(one.worker, one.port): one.expires_at for one in fleet.ports.leases()}
        return found.get((lease.worker, lease.port), 0.0)

    if bad == "pool":
        (file,) = bob.iterdir()
        other = bob / file.name.replace(fleet.pool.name, "nowhere")
        other.write_text(file.read_text().replace(fleet.pool.name, "nowhere"))
        give(other, BOB)
    elif bad == "pipe":
        os.mkfifo(bob / f"{fleet.pool.name}@web-1@1.json")
    elif bad == "garbage":
        give_file = bob / f"{fleet.pool.name}@web-1@2.json"
        give_file.write_bytes(b"\xff{")
        give(give_file, BOB)
    else:
        eventually(lambda: expiry(leases[1]) > leases[1].expires_at, "the lease never became known to the agent")
        bob.rename(bob.parent / "moved")  # in one step: a folder without the file is a lease that was released
        if bad == "folder":
            bob.write_text("")

    eventually(lambda: any(name in line for line in seen for name in ("nowhere", str(bob))), "the agent is silent")
    before = [expiry(one) for one in leases]
    eventually(lambda: all(expiry(one) > at for one, at in zip(leases, before, strict=True)), "a lease was not renewed")
    assert started.poll() is None


def test_holders_of_the_library_keep_their_leases_beside_those_of_a_pool_that_is_gone(fleet: Fleet) -> None:
    gone = replace(fleet.pool, name=f"{fleet.pool.name}-gone")
    with PortAllocator.from_url(fleet.redis_url, pool=gone.name, host="web-1") as other:
        other.apply_pool(gone)
        lost = fleet.ports.start_heartbeats(other.claim("zendesk", org="o", ttl=1))
        held = [
            fleet.ports.start_heartbeats(fleet.ports.claim(plugin, org="o", ttl=1)) for plugin in ("email", "stripe")
        ]
        client = client_of(fleet.ports.store)
        for key in [*client.scan_iter(match=f"alloc:{{{gone.name}}}*"), f"alloc:{{{gone.name}}}"]:
            client.delete(key)
        eventually(lambda: lost.doubtful)
        granted = {one.fence: one.lease.expires_at for one in held}
        eventually(lambda: all(one.lease.expires_at > granted[one.fence] + 2 for one in held), "they were not renewed")
        assert [one.doubtful for one in (lost, *held)] == [True, False, False]
        other.apply_pool(gone)
        eventually(lambda: not lost.doubtful)
        fleet.ports.end_held(lost, *held)


# -- settings --


class Listener:
    """A server of somebody else's: keeps what it is sent."""

    def __init__(self) -> None:
        self.got = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    self.got += b"connected " + connection.recv(1_000)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.close()


def command(directory: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALLOCATOR_", "XDG_"))}
    environment = kept | {"PYTHONPATH": str(ROOT), "HOME": str(directory)} | variables
    done = subprocess.run(
        [sys.executable, "-m", "allocator", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def own_settings(directory: Path, redis_url: str, pool: str) -> None:
    file = directory / ".config/allocator/allocator.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'redis_url = "{redis_url}"\npool = "{pool}"\n')


PLANTED = ["owned by another", "writable for all", "writable for a group", "a link of another's"]


def plant(directory: Path, listener: Listener, how: str) -> Path:
    return plant_text(directory / "allocator.toml", f'redis_url = "redis://127.0.0.1:{listener.port}"\n', how)


def plant_text(file: Path, text: str, how: str) -> Path:
    """Make a file that another user may change."""
    if how == "a link of another's":
        (file.parent / "elsewhere.toml").write_text(text)
        file.symlink_to(file.parent / "elsewhere.toml")
        return give(file, BOB)
    file.write_text(text)
    owner, mode = {"owned by another": (BOB, 0o644), "writable for all": (0, 0o666)}.get(how, (0, 0o664))
    give(file, owner, mode)
    if how == "writable for a group":
        os.chown(file, 0, BOB)
    return file


@pytest.mark.parametrize("how", PLANTED)
def test_the_settings_of_a_folder_that_another_may_change_do_not_win(
    fleet: Fleet, base: Path, listener: Listener, how: str
) -> None:
    file = plant(base, listener, how)
    own_settings(base, fleet.redis_url, fleet.pool.name)
    code, out, err = command(base, "claim", "email", "--org", "o")
    assert (code, int(out)) == (0, fleet.ports.leases()[0].port)
    assert f"the settings file {file} is not obeyed" in err
    command(base, "ls", ALLOCATOR_REDIS_PASSWORD=SECRET)
    assert listener.got == b""


@pytest.mark.parametrize("how", PLANTED)
def test_no_other_registry_is_used_instead_of_the_one_that_is_not_obeyed(
    base: Path, listener: Listener, how: str
) -> None:
    plant(base, listener, how)
    for arguments in (("claim", "email", "--org", "o"), ("ls",)):
        code, _, err = command(base, *arguments)
        assert code == 78
        assert "no Redis is configured, and the settings file" in err
        assert "--config" in err
    assert listener.got == b""
    assert not (base / ".local").exists()


def test_the_library_does_not_obey_them_either(base: Path, listener: Listener) -> None:
    plant(base, listener, "owned by another")
    program = "from allocator import PortAllocator; PortAllocator().claim('email', org='o')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=base, env={"PYTHONPATH": str(ROOT), "HOME": str(base)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ConfigurationError: no Redis is configured, and the settings file" in done.stderr
    assert listener.got == b""


def test_a_password_goes_to_no_server_of_a_named_file_that_another_may_change(base: Path, listener: Listener) -> None:
    file = plant(base, listener, "owned by another")
    code, _, err = command(base, "ls", "--config", str(file), ALLOCATOR_REDIS_PASSWORD=SECRET)
    assert code == 78
    assert "ALLOCATOR_REDIS_PASSWORD is not sent where" in err
    assert listener.got == b""
    command(base, "ls", "--config", str(file), "--redis-url", f"redis://127.0.0.1:{listener.port}",
            ALLOCATOR_REDIS_PASSWORD=SECRET)  # fmt: skip
    assert b"connected" in listener.got


def test_a_named_file_is_judged_by_what_was_read_whatever_has_its_name_by_then(base: Path, listener: Listener) -> None:
    named = base / "named.toml"
    os.mkfifo(named)
    give(named, BOB, 0o644)

    def write_and_replace() -> None:
        with named.open("w") as pipe:
            mine = base / "mine"
            mine.write_text("")
            mine.chmod(0o644)
            mine.rename(named)
            pipe.write(f'redis_url = "redis://127.0.0.1:{listener.port}"\n')

    writing = threading.Thread(target=write_and_replace)
    writing.start()
    code, _, err = command(base, "ls", "--config", str(named), ALLOCATOR_REDIS_PASSWORD=SECRET)
    writing.join(60)
    assert (code, "ALLOCATOR_REDIS_PASSWORD is not sent where" in err, listener.got) == (78, True, b"")


def test_settings_of_root_and_of_the_caller_are_obeyed(fleet: Fleet, base: Path) -> None:
    own_settings(base, fleet.redis_url, "not-this-one")
    (base / "allocator.toml").write_text(f'pool = "{fleet.pool.name}"\n')
    code, _, err = command(base, "claim", "email", "--org", "o")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("how", PLANTED)
def test_credentials_that_another_user_may_add_to_are_not_obeyed(base: Path, how: str) -> None:
    file = plant_text(base / "tokens", tokens_line("mallory", Scope.ADMIN, new_api_token()) + "\n", how)
    with pytest.raises(ConfigurationError, match=f"the tokens file {file} is not obeyed"):
        TokensFile(file).load()


def test_credentials_that_become_writable_for_others_are_not_obeyed_any_more(base: Path) -> None:
    token = new_api_token()
    file = base / "tokens"
    file.write_text(tokens_line("deploy", Scope.ADMIN, token) + "\n")
    tokens = TokensFile(file)
    assert tokens.caller(token)
    file.chmod(0o666)
    with pytest.raises(ConfigurationError, match="everybody may write it"):
        tokens.caller(token)
    file.chmod(0o640)
    assert tokens.caller(token)


# -- state, locks, sockets, exports --


def test_the_agents_lock_is_not_opened_through_a_link(fleet: Fleet, base: Path) -> None:
    victim = base / "precious"
    victim.write_text("keep")
    state = fleet.state / "allocator"
    state.mkdir()
    (state / "agent.lock").symlink_to(victim)
    code, _, err = finish(fleet.spawn("agent"))
    assert (code, victim.read_text()) == (78, "keep")
    assert "agent.lock is a symbolic link" in err
    (state / "agent.lock").unlink()
    os.link(victim, state / "agent.lock")
    code, _, err = finish(fleet.spawn("agent"))
    assert (code, victim.read_text()) == (78, "keep")
    assert "second name" in err


@pytest.mark.parametrize("what", ["state", "leases"])
def test_a_folder_that_another_user_made_beforehand_is_not_used(fleet: Fleet, base: Path, what: str) -> None:
    state = base / "state/allocator"
    planted = state if what == "state" else state / "leases"
    planted.mkdir(parents=True)
    give(planted, BOB, 0o777)
    arguments = ("agent",) if what == "state" else ("claim", "email", "--org", "o")
    code, _, err = finish(fleet.spawn(*arguments, variables={"XDG_STATE_HOME": str(base / "state")}))
    assert code == 78
    assert err.count("\n") == 1
    assert f"{planted} belongs to user {BOB}, and this is user root" in err
    assert fleet.ports.leases() == []


def test_a_token_that_another_user_planted_is_not_used(fleet: Fleet, base: Path) -> None:
    leases = base / "state/allocator/leases"
    leases.mkdir(parents=True)
    leases.chmod(0o777)
    token = "0123456789abcdef" * 2
    planted = leases / _claim_name(fleet.pool.name, "web-1", WorkerId("o", "email"))
    planted.write_text(token)
    give(planted, BOB)
    code, _, err = finish(
        fleet.spawn("claim", "email", "--org", "o", variables={"XDG_STATE_HOME": str(base / "state")})
    )
    assert code == 0, err
    assert leases.stat().st_mode & 0o777 == 0o700
    assert all(token not in path.read_text() for path in leases.iterdir() if path != planted)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_folders_are_0700_and_files_0600_whatever_the_umask(fleet: Fleet, base: Path, umask: int) -> None:
    variables = {"XDG_STATE_HOME": str(base / "deep/state")}
    started = fleet.spawn("claim", "email", "--org", "o", "--record", variables=variables, umask=umask)
    code, _, err = finish(started)
    assert code == 0, err
    found = {path: path.lstat().st_mode & 0o777 for path in (base / "deep").rglob("*")}
    assert any(path.suffix == ".sqlite3" for path in found)
    for path, mode in found.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_an_export_follows_no_link_of_another_and_replaces_no_file_of_another(fleet: Fleet, base: Path) -> None:
    sticky = base / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    victim = base / "precious"
    victim.write_text("keep")
    victim.chmod(0o600)
    link = sticky / "out"
    link.symlink_to(victim)
    give(link, BOB)
    code, _, err = finish(fleet.spawn("export", "env", "--out", str(link)))
    assert (code, victim.read_text(), victim.stat().st_mode & 0o777) == (78, "keep", 0o600)
    assert f"{link} is a link that user {BOB} made" in err
    his = sticky / "his"
    his.write_text("his")
    give(his, BOB, 0o644)
    code, _, err = finish(fleet.spawn("export", "env", "--out", str(his)))
    assert (code, his.read_text(), his.stat().st_uid) == (78, "his", BOB)


def test_a_pipe_of_another_keeps_no_export_waiting(fleet: Fleet, base: Path) -> None:
    pipe = base / "out"
    os.mkfifo(pipe)
    give(pipe, BOB, 0o644)
    code, _, err = finish(fleet.spawn("export", "env", "--out", str(pipe), "--exec", "true"))
    assert (code, pipe.is_fifo()) == (78, True)
    assert f"{pipe} is not a regular file" in err


def test_an_export_keeps_the_mode_and_owner_of_the_file_that_it_replaces(fleet: Fleet, base: Path) -> None:
    file = give_file = base / "workers.json"
    give_file.write_text("old")
    give(file, ANA, 0o640)
    code, _, err = finish(fleet.spawn("export", "json", "--out", str(file)))
    assert code == 0, err
    found = file.stat()
    assert (found.st_uid, found.st_mode & 0o777, file.read_text()) == (ANA, 0o640, "[]\n")


def test_a_token_is_appended_through_no_link(fleet: Fleet, base: Path) -> None:
    victim = base / "precious"
    victim.write_text("keep\n")
    link = base / "tokens"
    link.symlink_to(victim)
    give(link, BOB)
    code, _, err = finish(fleet.spawn("token", "deploy", "--file", str(link)))
    assert (code, victim.read_text()) == (78, "keep\n")
    assert "symbolic link" in err


def test_a_socket_of_another_user_is_not_removed(fleet: Fleet, base: Path) -> None:
    path = base / "agent.sock"
    with socket.socket(socket.AF_UNIX) as his:
        his.bind(str(path))
        give(path, BOB)
        code, _, err = finish(fleet.spawn("agent", "--socket", str(path)))
    assert code == 78
    assert f"the socket {path} belongs to user {BOB}" in err
    assert path.is_socket()
