"""`--env-file` reads what users of `.env` files write, and secrets of the supervisor's own environment stay with it."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from supervised import Fleet, finish

from allocator.model.errors import ConfigurationError
from allocator.supervisor.fields import read_env_file

if TYPE_CHECKING:
    from pathlib import Path

WRITTEN = {
    "plain": (b"A=1\nB=two words\n", {"A": "1", "B": "two words"}),
    "quotes": (b"A=\"a 'b' #c\"\nB='a \"b\" $C'\n", {"A": "a 'b' #c", "B": 'a "b" $C'}),
    "escapes": (b"A=\"one\\ntwo\"\nB='one\\ntwo'\n", {"A": "one\ntwo", "B": "one\\ntwo"}),
    "several lines": (b'KEY="-----BEGIN\nabc\n-----END"\nB=1\n', {"KEY": "-----BEGIN\nabc\n-----END", "B": "1"}),
    "export": (b"export A=1\nexport  B='2'\n", {"A": "1", "B": "2"}),
    "CRLF": (b'A=1\r\nB="2"\r\n\r\n# c\r\nC=3', {"A": "1", "B": "2", "C": "3"}),
    "a byte order mark": (b"\xef\xbb\xbfA=1\n", {"A": "1"}),
    "comments": (b"# a\nA=1 # b\nB=1#b\nC='1' # c\n", {"A": "1", "B": "1#b", "C": "1"}),
    "spaces": (b"  A = 1  \n\tB= 2\n", {"A": "1", "B": "2"}),
    "empty": (b"A=\nB=''\n", {"A": "", "B": ""}),
    "equals signs": (b"URL=a=b&c=d==\n", {"URL": "a=b&c=d=="}),
    "a reference, as it stands": (b"A=${HOME}/x\n", {"A": "${HOME}/x"}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_variables_is_read_as_its_users_know_it(tmp_path: Path, name: str) -> None:
    content, expected = WRITTEN[name]
    (tmp_path / ".env").write_bytes(content)
    assert read_env_file(tmp_path / ".env") == expected


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        (b"A=1\n\n\nno assignment\n", r":4: 'no assignment' is not NAME=value"),
        (b"A=1\nSECRET='s3cret\n", r":2: the value of 'SECRET' has an open quote"),
        (b"A=1\n1A=2\n", r":2: '1A' is not NAME=value"),
        (b"A=1\nexport B\n", r":2: 'B' is not NAME=value"),
        (b"\xff\xfeA\x00", r"it is not UTF-8 text"),
    ],
)
def test_a_wrong_line_is_named_without_its_value(tmp_path: Path, content: bytes, printed: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(ConfigurationError, match=printed) as refused:
        read_env_file(tmp_path / ".env")
    assert "s3cret" not in str(refused.value)


SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
SECRETS = {
    "PGPASSWORD": "s3cret",
    "ALLOCATOR_DATABASE_PASSWORD": "s3cret",
    "ALLOCATOR_TOKEN": "s3cret",
}


def test_secrets_of_the_supervisor_do_not_reach_the_worker(fleet: Fleet) -> None:
    _, out, err = finish(fleet.run(command=[sys.executable, "-c", SHOW], variables=SECRETS))
    assert not SECRETS.keys() & json.loads(out).keys(), err
    assert "s3cret" not in out


def test_what_a_file_gives_the_worker_it_has(fleet: Fleet) -> None:
    (fleet.state / ".env").write_text("PGPASSWORD=own\n")
    command = [sys.executable, "-c", SHOW]
    _, out, _ = finish(fleet.run("--env-file", ".env", command=command, variables={"PGPASSWORD": "s3cret"}))
    assert json.loads(out)["PGPASSWORD"] == "own"


def test_a_passed_socket_is_the_only_descriptor_that_is_passed_on(fleet: Fleet, tmp_path: Path) -> None:
    show = "import os; fds = '/proc/self/fd/'; print(sorted(n for n in os.listdir(fds) if os.path.exists(fds + n)))"
    with (tmp_path / "secret").open("w") as inherited, socket.socket() as also:
        numbers = [inherited.fileno(), also.fileno()]
        for number in numbers:
            os.set_inheritable(number, True)
        process = fleet.run("--listen-fd", command=[sys.executable, "-S", "-c", show], pass_fds=numbers)
        _, out, _ = finish(process)
    assert out == "['0', '1', '2', '3']\n"
