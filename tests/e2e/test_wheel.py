"""The wheel alone, in a fresh environment: what a user installs is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uv() -> str:
    found = Path(sys.executable).with_name("uv")
    if not found.exists():
        pytest.skip("uv is not in this environment; scripts/environment puts it there")
    return str(found)


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([uv, "build", "--wheel", "--out-dir", str(out), str(ROOT)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_it_holds_every_script_and_every_file_of_the_page_and_nothing_of_the_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("**/*.lua", "api/page/*", "py.typed"):
        for path in (ROOT / "allocator").glob(kind):
            assert str(path.relative_to(ROOT)) in names
    assert not any(name.startswith(("tests", "deploy", "docs")) for name in names)
    assert any(name.endswith(".data/data/share/man/man1/allocator.1") for name in names)


def test_it_works_alone_in_a_fresh_environment(uv: str, wheel: Path, redis_url: str, pool, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")], check=True)
    arguments = [uv, "pip", "install", "--quiet", "--python", str(python), f"portlease[server] @ {wheel.as_uri()}"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALLOCATOR_", "PYTHON"))}
    environment = kept | {
        "ALLOCATOR_REDIS_URL": redis_url,
        "ALLOCATOR_POOL": pool.name,
        "XDG_STATE_HOME": str(tmp_path),
    }
    allocator = str(python.with_name("allocator"))
    claimed = subprocess.run(
        [allocator, "claim", "email", "--org", "org-1"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(claimed.stdout) in pool
    server = subprocess.Popen(
        [allocator, "serve", "--listen", "127.0.0.1:0"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        url = next(found[1] for line in server.stderr if (found := re.search(r" on (http://\S+);", line)))
        program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"
        for path in ("/", "/page/page.js", "/readyz"):
            asked = subprocess.run([str(python), "-c", program, url + path], capture_output=True, text=True, check=True)
            assert asked.stdout.strip() == "200"
    finally:
        server.terminate()
        server.wait(timeout=30)
        server.stderr.close()
