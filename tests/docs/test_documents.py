"""The documents say what is so: their commands run, their programs run, their links lead somewhere."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from api_server import served
from supervised import Fleet

from allocator import AsyncPortAllocator
from allocator.api.application import create_app

if TYPE_CHECKING:
    from allocator import PoolSpec

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("allocator/**/*.md")})
BLOCK = re.compile(r"(?:<!-- (not run|run until|run with): ([^>]+) -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
"""A block may say that it is `not run` and why; `run until: WORDS` it prints, when it goes on until it is stopped; or
`run with: a server`, `a worker` or `PostgreSQL`, which the test starts and names in the place of the document's."""
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PROGRAMS = {
    **dict.fromkeys(
        ("apt-get", "nginx", "redis-cli", "sysctl", "systemctl", "useradd", "userdel"), "#!/bin/sh\nexit 0\n"
    ),
    "opentelemetry-instrument": '#!/bin/sh\nexec "$@"\n',
}
"""What documents call besides `allocator` and is not here, or must not be touched."""
FOLDERS = (
    "etc/allocator",
    "etc/envoy",
    "etc/haproxy",
    "etc/nginx",
    "etc/redis",
    "etc/sysctl.d",
    "etc/systemd/system",
    "etc/traefik/dynamic",
    "opt",
    "usr/local/bin",
    "var/lib",
)
"""What a machine has and a document writes to; a test has its own."""
REPOSITORY = "/srv/portlease"
"""Where documents say that this repository is."""
NODE_WORKER = "require('http').createServer((q, a) => a.end('ok')).listen(process.env.PORT, () => console.log('up'));"


def blocks(language: str, directive: str | None) -> list:
    return [
        pytest.param(
            match[4], match[2], id=f"{path.relative_to(ROOT)}:{path.read_text()[: match.start()].count(chr(10)) + 1}"
        )
        for path in DOCUMENTS
        for match in BLOCK.finditer(path.read_text())
        if match[3] == language and match[1] == directive
    ]


@pytest.fixture
def environment(tmp_path: Path, redis_url: str, pool: PoolSpec) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    paths = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"XDG_STATE_HOME": str(tmp_path), "PATH": paths, "PYTHONPATH": str(ROOT), "ALLOCATOR_LISTEN": "127.0.0.1:0"}
    return kept | own | {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name}


def run(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> str:
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program_of(text: str) -> str:
    """Return a program whose allocators speak to the tests' Redis, in this test's pool."""
    environ = '__import__("os").environ'
    url = f'{environ}["ALLOCATOR_REDIS_URL"], pool={environ}["ALLOCATOR_POOL"]'
    text = text.replace("from_url()", f"from_url({url})").replace("from_url(tracer", f"from_url({url}, tracer")
    return re.sub(r'"redis://redis\.internal[^"]*"', url, text)


def placed(text: str, tmp_path: Path) -> str:
    """Return commands that write to the test's own folders where they name those of the machine."""
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    return re.sub(
        r"(?<![\w.])/(etc|opt|usr/local/bin|var/lib)/", rf"{tmp_path}/\1/", text.replace(REPOSITORY, str(ROOT))
    )


@pytest.mark.parametrize(("text", "_"), blocks("bash", None))
def test_commands_run_as_written(text: str, _: str, environment: dict[str, str], tmp_path: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", placed(text, tmp_path)], environment, tmp_path)


@pytest.mark.parametrize(("text", "phrase"), blocks("bash", "run until"))
def test_commands_that_stay_run_until_they_are_stopped(
    text: str, phrase: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "worker.js").write_text(NODE_WORKER)
    here = placed(text, tmp_path).replace("127.0.0.1:8577", "127.0.0.1:0")
    if "node" in here and shutil.which("node") is None:
        pytest.skip("Node is not installed; the package nodejs of the distribution has it")
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", here],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if phrase in line:
                return
        raise AssertionError(f"it ended without {phrase!r}: {printed}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.parametrize(("text", "what"), blocks("bash", "run with"))
def test_commands_with_what_they_need_run_as_written(
    text: str, what: str, environment: dict[str, str], tmp_path: Path, redis_url: str, pool: PoolSpec
) -> None:
    assert what == "a server"
    with served(create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1"))) as url:
        here = text.replace("http://127.0.0.1:8577", url)
        run(["bash", "-euo", "pipefail", "-c", here], environment, tmp_path)


@pytest.mark.parametrize(("text", "_"), blocks("python", None))
def test_programs_run_as_written(text: str, _: str, environment: dict[str, str], tmp_path: Path) -> None:
    run([sys.executable, "-c", program_of(text)], environment, tmp_path)


@pytest.mark.parametrize(("text", "what"), blocks("python", "run with"))
def test_programs_with_what_they_need_run_as_written(
    text: str, what: str, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program = program_of(text)
    if what == "PostgreSQL":
        url = request.getfixturevalue("postgres_url")
        run(["allocator", "db", "upgrade", "--database-url", url], environment, tmp_path)
        program = re.sub(r'"postgresql://[^"]*"', repr(url), program)
    else:
        assert what == "a worker"
        redis_url, ports = request.getfixturevalue("redis_url"), request.getfixturevalue("ports")
        fleet = Fleet(redis_url, request.getfixturevalue("pool"), ports, tmp_path)
        request.addfinalizer(fleet.clean)  # only where there is one
        fleet.run("--health", "/health", org="org-123", variables={"ALLOCATOR_ADVERTISE": "127.0.0.1"})
        fleet.lease(org="org-123")
    run([sys.executable, "-c", program], environment, tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(path: Path) -> None:
    broken = [target for target in LINK.findall(path.read_text()) if not (path.parent / target).exists()]
    assert broken == []


PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if not re.match(r"\d{4}-", path.name))
"""All but the decisions, which have an index of their own and one form."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_states_at_its_top_for_whom_it_is_and_what_one_has_at_its_end(path: Path) -> None:
    top = " ".join(path.read_text().split("\n\n")[1].replace("\n> ", "\n").split())
    assert re.match(r"> \*\*For\*\* .+\. \*\*At the end\*\* .+\.", top), top


def test_every_page_is_reached_from_the_index_and_the_index_from_the_readme() -> None:
    index = ROOT / "docs/README.md"
    reached = {(index.parent / target).resolve() for target in LINK.findall(index.read_text())}
    assert [str(path.relative_to(ROOT)) for path in PAGES if path not in {*reached, index}] == []
    decisions = ROOT / "docs/decisions"
    listed = set(LINK.findall((decisions / "README.md").read_text()))
    assert {path.name for path in decisions.glob("[0-9]*.md")} == listed
    assert "docs/README.md" in LINK.findall((ROOT / "README.md").read_text())


def test_the_page_of_troubles_has_every_error_finding_and_problem() -> None:
    import allocator
    from allocator.api.problems import KINDS, PLAIN_KINDS

    page = (ROOT / "docs/how-to/troubleshoot.md").read_text()
    source = "".join(path.read_text() for path in ROOT.glob("allocator/cli/checks/*.py"))
    source += (ROOT / "allocator/cli/doctor.py").read_text() + (ROOT / "allocator/model/problems.py").read_text()
    checks = set(re.findall(r'(?:Finding|finding_of|patiently)\(\s*"([a-z-]+)"', source))
    checks |= set(re.findall(r'check(?:, severity)? ?= ?"([a-z-]+)"', source))
    kinds = {kind.name for kind in (*KINDS.values(), *PLAIN_KINDS)}
    errors = {name for name in allocator.__all__ if name.endswith("Error")} - {"AllocatorError"}
    assert len(checks) > 20
    assert [name for name in sorted(checks | kinds | errors) if f"`{name}`" not in page] == []
