"""Machines with a real systemd, without a virtual machine: a root of their own, and namespaces for all the rest.

A machine has this one's programs (`/usr`, read-only, without `/usr/local/bin`), an empty `/etc`, `/var`, `/opt`, `/srv`
and `/home`, a network card at one switch with the others, and systemd as its first process. Nothing of it outlives the
test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from supervised import ROOT, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEMD = Path("/usr/lib/systemd/systemd")
PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "pivot_root", "systemctl", "systemd-escape")
CGROUPS = Path("/sys/fs/cgroup")
ENOUGH_S = 120
"""Longer than anything takes on a loaded machine; nothing is judged by it."""
EMPTY = (
    *("home", "mnt", "opt", "root", "srv/portlease", "usr-local-bin", "var/lib/dpkg"),
    *("var/cache/apt/archives/partial", "var/lib/apt/lists/partial"),
)
COPIED = (
    *("alternatives", "apt", "debian_version", "default/useradd", "group", "gshadow", "ld.so.cache", "ld.so.conf"),
    *("ld.so.conf.d", "login.defs", "nsswitch.conf", "pam.d", "passwd", "pip.conf", "resolv.conf", "security"),
    *("shadow", "ssl", "sysctl.conf", "xdg/pip"),
)
"""What the distribution, and whoever set up this machine, put into /etc."""
MASKED = (
    *("dev-hugepages.mount", "getty.target", "modprobe@.service", "sys-fs-fuse-connections.mount"),
    *("sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("systemd-timesyncd.service", "tmp.mount"),
)
"""Units about the kernel that all machines share."""
NO_INDEX = re.compile(
    r"Could not find a version|No matching distribution|onnection|emporary failure|timed out|Failed to fetch"
)
"""What pip and uv print where no package index can be reached."""
BOOT = """
set -eu
mount --bind "$ROOT" "$ROOT"
cd "$ROOT"; mkdir -p mnt
mount --rbind /usr usr; mount -o remount,bind,ro usr
mount --bind usr-local-bin usr/local/bin
mount -t tmpfs none usr/lib/sysctl.d
mount --bind "$REPOSITORY" srv/portlease; mount -o remount,bind,ro srv/portlease
mount -t proc none proc
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys; mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs none sys
mount -t tmpfs none run; mount -t tmpfs none tmp; chmod 1777 tmp; mount -t tmpfs none dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 none dev/pts
mount -t tmpfs none dev/shm
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
hostname "$NAME"
pivot_root . mnt; umount -l mnt
read -r _
exec setpriv --bounding-set=-sys_time,-sys_module,-syslog env -i container=test \\
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_LOG_TARGET=journal \\
    /usr/lib/systemd/systemd --system --unit=multi-user.target
"""
"""Its first process. It waits for a line: by then it has its network card."""


class Machine:
    """One machine, on or off; its files stay when it is off."""

    def __init__(self, name: str, address: str, switch: int, root: Path, hosts: str) -> None:
        self.name, self.root = name, root
        self._address, self._switch = address, switch
        self._process: subprocess.Popen[str] | None = None
        self._init = 0
        self._groups: list[Path] = []
        self._furnish(hosts)

    def _furnish(self, hosts: str) -> None:
        self.root.mkdir()
        self.root.chmod(0o755)
        for folder in (
            "dev",
            "etc/sysctl.d",
            "etc/systemd/system",
            "proc",
            "run",
            "sys",
            "tmp",
            "usr",
            "var/lib",
            "var/log",
            *EMPTY,
        ):
            (self.root / folder).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        (self.root / "var/run").symlink_to("/run")
        for name in COPIED:
            if Path("/etc", name).exists():
                (self.root / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", f"/etc/{name}", self.root / "etc" / name], check=True)
        for unit in MASKED:
            (self.root / "etc/systemd/system" / unit).symlink_to("/dev/null")
        (self.root / "etc/hosts").write_text(hosts)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")

    def start(self) -> None:
        """Switch it on, and wait until systemd reports that it is up."""
        self._groups = groups(f"portlease-{os.getpid()}-{self.name}")
        join = "".join(f'echo $$ > "{group}/cgroup.procs" || true; ' for group in self._groups)
        variables = {"ROOT": str(self.root), "NAME": self.name, "REPOSITORY": str(ROOT), "BOOT": BOOT}
        own = "--mount --pid --uts --ipc --net --cgroup --fork --kill-child --propagation private"
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", f'{join}exec unshare {own} sh -c "$BOOT"'],
            env=os.environ | variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._init = int(until_true(self._children, "its first process")[0])
        self._plug_in()
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.close()
        until_true(self._is_up, "systemd is not up")

    def _children(self) -> list[str]:
        assert self._process
        if self._process.poll() is not None:
            assert self._process.stderr
            raise OSError(self._process.stderr.read().strip())
        return Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()

    def _plug_in(self) -> None:
        card = f"m{self._address.rpartition('.')[2]}"
        for target, line in (
            (self._switch, f"ip link add {card} type veth peer name eth0 netns {self._init}"),
            (self._switch, f"ip link set {card} master switch up"),
            (self._init, "ip link set lo up"),
            (self._init, f"ip addr add {self._address}/24 dev eth0"),
            (self._init, "ip link set eth0 up"),
            (self._init, "ip route add default via 10.99.0.1"),
        ):
            arguments = ["nsenter", "--target", str(target), "--net", *line.split()]
            subprocess.run(arguments, check=True, capture_output=True, text=True)

    def _is_up(self) -> bool:
        if Path(f"/proc/{self._init}/comm").read_text() != "systemd\n":
            return False
        arguments = self._command("systemctl", "is-system-running")
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        return done.stdout.strip() in {"running", "degraded"}

    def _command(self, *arguments: str, net: bool = True, login: dict[str, str] | None = None) -> list[str]:
        entered = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", *(["--net"] if net else [])]
        environment = {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", **(login or {})}
        variables = [f"{key}={value}" for key, value in environment.items()]
        enter = ["nsenter", "--target", str(self._init), *entered]
        return [*enter, "env", "--chdir=/root", "-i", *variables, *arguments]

    def run(
        self, script: str, *, check: bool = True, outside: bool = False, login: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run lines of bash in a login as root; `outside` reaches this machine's network instead of its own."""
        text = self._command("bash", "-euo", "pipefail", "-c", script, net=not outside, login=login)
        done = subprocess.run(
            text, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5 * ENOUGH_S, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"on {self.name}: {script}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def cut_power(self) -> None:
        """Stop it as a power cut does: nothing can say goodbye."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()
        self._process = None
        for group in self._groups:
            remove(group)


class Fleet:
    """Machines that reach each other by name, and nothing else."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._stack = contextlib.ExitStack()
        self._folder, self._names = folder, names
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        missing = [name for name in PROGRAMS if not shutil.which(name)]
        if os.geteuid() != 0 or missing or not SYSTEMD.exists():
            pytest.skip(f"machines need root, systemd and {', '.join(missing or PROGRAMS)}")
        if not Path("/lib").is_symlink():
            pytest.skip("this distribution has programs outside /usr")
        with contextlib.ExitStack() as stack:
            switch = self._switch(stack)
            addresses = {name: f"10.99.0.{number}" for number, name in enumerate(self._names, 10)}
            hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
            try:
                for name, address in addresses.items():
                    one = Machine(name, address, switch, self._folder / name, hosts)
                    self.machines[name] = one
                    stack.callback(one.cut_power)
                    one.start()
            except (OSError, subprocess.SubprocessError, AssertionError) as error:
                pytest.skip(f"no machine can be started here: {getattr(error, 'stderr', None) or error}")
            self._stack = stack.pop_all()
        return self

    def _switch(self, stack: contextlib.ExitStack) -> int:
        arguments = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c",
                 "ip link add switch type bridge && ip link set switch up && echo up; exec sleep 100000"]  # fmt: skip
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout
        stack.enter_context(process.stdout)
        if process.stdout.readline() != "up\n":
            pytest.skip("no bridge can be made in a network namespace here")
        return process.pid

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()


def package_index() -> dict[str, str]:
    """Return the package index of this environment as variables for pip."""
    arguments = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(arguments, capture_output=True, text=True, check=False).stdout.splitlines()
    wanted = re.compile(r"(?:global|:env:)\.(index-url|trusted-host|default-timeout)='(.*)'")
    found = [match for line in lines if (match := wanted.fullmatch(line))]
    variables = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return variables | {"PIP_" + match[1].upper().replace("-", "_"): match[2] for match in found}


def groups(name: str) -> list[Path]:
    """Make a control group of this name below this process' own in each hierarchy; return their folders."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        folder = controllers.removeprefix("name=") if controllers else "unified"
        top = CGROUPS if not controllers and (CGROUPS / "cgroup.controllers").exists() else CGROUPS / folder
        group = top / own.lstrip("/") / name
        if group.parent.is_dir():
            try:
                group.mkdir(exist_ok=True)
            except OSError as error:
                pytest.skip(f"no control group can be made here: {error}")
            made.append(group)
    return made


def remove(group: Path) -> None:
    """Remove a control group and those in it, as soon as their processes are gone."""
    below = sorted((path for path in group.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    for path in (*below, group):
        with contextlib.suppress(AssertionError):  # what stays is empty
            eventually(lambda path=path: _is_removed(path))


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def until_true(condition: Callable[[], object], what: str) -> object:
    return eventually(condition, what, ENOUGH_S)
