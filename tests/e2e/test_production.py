"""The page about servers, followed word by word on machines with a real systemd, from nothing to nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machines import NO_INDEX, Fleet, Machine, package_index, until_true
from supervised import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs/tutorials/production-install.md"
REMOVAL = ROOT / "docs/how-to/upgrade-and-remove.md"
HOSTS = ("web-1", "web-2", "web-3")
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SITE = re.compile(r"(Each host)|[Oo]n (`redis\.internal`|`web-\d`(?:(?:, | and )`web-\d`)*)")
MADE_UP = "put-the-password-of-step-1-here"
pytestmark = pytest.mark.xdist_group("machines")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    for program in ("node", "redis-server", "apt-get", "python3"):
        if not shutil.which(program, path="/usr/bin:/usr/sbin"):
            pytest.skip(f"needs the distribution's {program}")
    with Fleet(tmp_path_factory.mktemp("machines"), ("redis.internal", *HOSTS)) as fleet:
        machines = fleet.machines
        package_of_redis(machines["redis.internal"])
        for host in HOSTS:
            a_plugin(machines[host])
        yield machines


def package_of_redis(machine: Machine) -> None:
    """Leave what the distribution's package leaves outside /usr; `apt-get install` then finds it installed."""
    for path in ("var/lib/dpkg/status", "etc/redis", "var/lib/redis", "var/log/redis"):
        if not Path("/", path).exists():
            pytest.skip("needs the distribution's package redis-server")
        subprocess.run(["cp", "-a", f"/{path}", machine.root / path], check=True)
    data = (machine.root / "var/lib/redis", machine.root / "var/log/redis")
    subprocess.run(["find", *data, "-type", "f", "-delete"], check=True)


def a_plugin(machine: Machine) -> None:
    """Put a plugin where the shipped unit looks for it."""
    runner = machine.root / "srv/plugin-sdk-v2/runner"
    runner.mkdir(parents=True)
    shutil.copy(ROOT / "tests/workers/runner.mjs", runner)
    (runner / "index.js").write_text("import('./runner.mjs');\n")
    (machine.root / "srv/plugins/core/email").mkdir(parents=True)


class Reader:
    """Somebody with a terminal on each machine, who types what a page shows."""

    def __init__(self, machines: dict[str, Machine]) -> None:
        self.machines = machines
        self.password = ""

    def follow(self, page: Path, number: int) -> str:
        """Type the commands of a section where the page wants them; return what they printed."""
        (section,) = re.findall(rf"^## {number}\. .*?(?=^## |\Z)", page.read_text(), re.DOTALL | re.MULTILINE)
        printed, before, hosts = "", 0, ("web-1",)
        for block in BLOCK.finditer(section):
            if addresses := SITE.findall(section[before : block.start()]):
                everywhere, named = addresses[-1]
                hosts = HOSTS if everywhere else tuple(re.findall("`([^`]+)`", named))
            before = block.end()
            for host in hosts:
                printed += self.type(host, block[1])
        return printed

    def type(self, host: str, text: str) -> str:
        """Type a block, each line that ends with a machine's name on that machine."""
        printed = ""
        for elsewhere in re.findall(r".*# on web-\d\n", text):
            line, _, host_of_block = elsewhere.rstrip().rpartition("# on ")
            printed += self._enter(host_of_block, line)
            text = text.replace(elsewhere, "")
        return printed + self._enter(host, text)

    def _enter(self, host: str, text: str) -> str:
        machine = self.machines[host]
        if "pip install" in text:
            return self._install(machine, text)
        text = text.replace(MADE_UP, self.password or MADE_UP)
        printed = machine.run(f"[ ! -e /run/login ] || . /run/login\n{text}\nexport -p > /run/login").stdout
        if found := re.search("the hosts need this password: (.+)", printed):
            self.password = found[1]
        return printed

    def _install(self, machine: Machine, text: str) -> str:
        """Install from the index that this machine is configured for; the later hosts get copies of the first."""
        first = self.machines[HOSTS[0]]
        if machine is not first:
            subprocess.run(["cp", "-a", *(first.root / "opt").iterdir(), machine.root / "opt"], check=True)
            subprocess.run(
                ["cp", "-a", *(first.root / "usr-local-bin").iterdir(), machine.root / "usr-local-bin"], check=True
            )
            return ""
        try:
            done = machine.run(text, check=False, outside=True, login=package_index())
        except subprocess.TimeoutExpired:
            pytest.skip("the package index does not answer in time")
        if done.returncode and NO_INDEX.search(done.stderr):
            pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def reader(fleet: dict[str, Machine]) -> Reader:
    """Somebody who has followed the page up to the first workers."""
    reader = Reader(fleet)
    for number in (1, 2, 3, 4):
        reader.follow(PAGE, number)
    return reader


LOGIN = "set -a; . /etc/allocator/environment; set +a; "


def leases(machine: Machine) -> dict[tuple[str, str], dict[str, object]]:
    """Return the leases that are ready, by host and worker."""
    rows = json.loads(machine.run(f"{LOGIN} allocator ls --format json").stdout)
    return {(row["host"], f"{row['org']}/{row['plugin']}"): row for row in rows if row["state"] == "ready"}


def ready(machine: Machine, worker: str) -> dict[str, object]:
    """Wait until a machine's worker is ready, and return its lease."""

    def its_lease() -> dict[str, object] | None:
        return leases(machine).get((machine.name, worker))

    try:
        return until_true(its_lease, f"{worker} is not ready on {machine.name}")
    except AssertionError as error:
        log = machine.run("systemctl --failed --no-pager; journalctl --no-pager -n 40").stdout
        raise AssertionError(f"{error}\n{log}") from None


def test_the_page_leads_where_it_points(reader: Reader) -> None:
    web = [reader.machines[host] for host in HOSTS]
    orgs = ("org-123", "org-456", "org-789")
    before = [ready(machine, f"{org}/email") for machine, org in zip(web, orgs, strict=True)]
    assert [lease["port"] for lease in before] == [5556, 5556, 5556]

    web[0].run(f"kill -9 {before[0]['pid']}")
    until_true(lambda: ready(web[0], "org-123/email")["pid"] != before[0]["pid"], "the worker is not back")
    assert ready(web[0], "org-123/email")["port"] == 5556
    assert "web-1:5556  org-123/email#0" in reader.follow(PAGE, 5)
    assert reader.follow(PAGE, 6) == "10.99.0.11:5556\n"
    assert "web-1" in reader.follow(PAGE, 7)
    state = "systemctl show --value -p ActiveState,Result plugin-email-run@org-123"
    assert web[0].run(state).stdout.split() == ["success", "inactive"]
    web[0].run("systemctl start plugin-email-run@org-123")
    assert ready(web[0], "org-123/email")["port"] == 5556
    page = "import urllib.request as http; print(http.urlopen('http://web-1:8577/').status)"
    assert web[1].run(f'/opt/portlease/bin/python -c "{page}"').stdout == "200\n"
    assert web[0].run(f"{LOGIN} allocator doctor").stdout.endswith("all well\n")


def test_a_host_that_lost_its_power_has_its_worker_and_its_port_again(reader: Reader) -> None:
    host = reader.machines["web-2"]
    before = ready(host, "org-456/email")
    host.cut_power()
    host.start()
    until_true(lambda: ready(host, "org-456/email")["fence"] != before["fence"], "the lease is the one of before")
    assert ready(host, "org-456/email")["port"] == before["port"]
    assert host.run("systemctl --failed --no-legend").stdout == ""


def test_a_plugin_with_at_and_slash_in_its_name_is_an_instance(reader: Reader) -> None:
    host, name = reader.machines["web-3"], "@hay/plugin-email"
    (host.root / "srv/plugins/core" / name).mkdir(parents=True)
    host.run("cp /srv/portlease/deploy/systemd/plugin-run@.service /etc/systemd/system/; systemctl daemon-reload")
    unit = f"$(systemd-escape --template=plugin-run@.service 'org-1/{name}')"
    host.run(f'systemctl start "{unit}"')
    assert ready(host, f"org-1/{name}")["instance"] == 0
    host.run(f'systemctl stop "{unit}"')
    until_true(lambda: ("web-3", f"org-1/{name}") not in leases(host), "the lease did not end")


def test_a_worker_with_hooks_has_the_agent_first_and_releases_its_port_at_the_end(reader: Reader) -> None:
    host = reader.machines["web-3"]
    host.run("cp /srv/portlease/deploy/systemd/plugin-email@.service /etc/systemd/system/; systemctl daemon-reload")
    host.run("systemctl stop allocator-agent; systemctl start plugin-email@org-9")
    assert host.run("systemctl is-active allocator-agent").stdout == "active\n"
    began = "systemctl show --value -p ActiveEnterTimestampMonotonic"
    agent, worker = host.run(f"{began} allocator-agent; {began} plugin-email@org-9").stdout.split()
    assert int(agent) < int(worker)
    ready(host, "org-9/email")
    assert "listening on" in host.run("journalctl -t plugin-email-org-9").stdout
    host.run("systemctl stop plugin-email@org-9")
    assert ("web-3", "org-9/email") not in leases(host)


def test_a_worker_with_hooks_starts_where_no_agent_is_installed(reader: Reader) -> None:
    host = reader.machines["web-3"]
    unit = "/etc/systemd/system/allocator-agent.service"
    host.run("cp /srv/portlease/deploy/systemd/plugin-email@.service /etc/systemd/system/")
    host.run(f"systemctl stop allocator-agent; mv {unit} /root; systemctl daemon-reload")
    try:
        host.run("systemctl start plugin-email@org-10")
        assert host.run("systemctl is-active plugin-email@org-10").stdout == "active\n"
        assert "org-10" in host.run(f"{LOGIN} allocator ls").stdout
        host.run("systemctl stop plugin-email@org-10")
    finally:
        host.run(f"mv /root/allocator-agent.service {unit}; systemctl daemon-reload; systemctl start allocator-agent")


def test_an_agent_that_hangs_is_started_again_and_the_worker_keeps_its_port(reader: Reader) -> None:
    host = reader.machines["web-3"]
    host.run("cp /srv/portlease/deploy/systemd/plugin-email@.service /etc/systemd/system/; systemctl daemon-reload")
    host.run("systemctl start plugin-email@org-11")
    before = ready(host, "org-11/email")
    pid = "systemctl show --value -p MainPID allocator-agent"
    hung = host.run(pid).stdout
    host.run(f"kill -STOP {hung}")
    until_true(lambda: host.run(pid).stdout not in {hung, "0\n"}, "the agent was not started again")
    after = ready(host, "org-11/email")
    assert (after["port"], after["pid"]) == (before["port"], before["pid"])
    host.run("systemctl stop plugin-email@org-11")


def test_removal_leaves_no_trace(reader: Reader) -> None:
    text = REMOVAL.read_text()
    away, gone = (text[text.index(title) :].split("\n## ")[0] for title in ("## Remove a host", "## Remove portlease"))
    reader.type("web-3", BLOCK.search(away)[1])
    for host in ("web-3", "web-1"):
        reader.type(host, BLOCK.search(gone)[1])
        root = reader.machines[host].root
        left = [
            path
            for folder in ("etc", "home", "opt", "root", "usr-local-bin", "var")
            for path in root.glob(f"{folder}/**/*")
            if any(name in path.name for name in ("allocator", "portlease", "plugin"))
        ]
        assert left == []
        assert "plugins" not in (root / "etc/passwd").read_text()
