"""What each export looks like: byte for byte, sorted, loadable also when a service has no worker."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from servers import installed

from allocator import Endpoint, WorkerId
from allocator.discovery.formats import FORMATS

if TYPE_CHECKING:
    from pathlib import Path


def endpoint(address, port, *, host="web-1", plugin="email", org="org-123", instance=0):
    return Endpoint(address, port, host, WorkerId(org, plugin, instance), 1)


SERVICES = {
    ("email", "org-123"): (endpoint("10.0.0.5", 5556), endpoint("fd00::6", 5557, host="web-2", instance=1)),
    ("stripe", "org-123"): (),
}


def test_nginx():
    assert FORMATS["nginx"](SERVICES) == (
        "# written by 'allocator export'; it is replaced when workers come and go\n"
        "upstream email.org-123 {\n    server 10.0.0.5:5556 max_fails=0;\n    server [fd00::6]:5557 max_fails=0;\n}\n"
        "upstream stripe.org-123 {\n    server 127.0.0.1:1 down;\n}\n"
    )


def test_haproxy():
    text = FORMATS["haproxy"](SERVICES)
    assert "backend email.org-123\n    balance roundrobin\n    option redispatch\n" in text
    assert "    server web-1:5556 10.0.0.5:5556 check\n    server web-2:5557 [fd00::6]:5557 check\n" in text
    assert text.endswith("backend stripe.org-123\n    balance roundrobin\n    option redispatch\n")


def test_traefik():
    text = FORMATS["traefik"](SERVICES)
    assert '      rule: "Host(`email.org-123.plugin`)"\n      service: "email.org-123"\n' in text
    assert '          - url: "http://10.0.0.5:5556"\n          - url: "http://[fd00::6]:5557"\n' in text
    assert text.endswith('    "stripe.org-123":\n      loadBalancer:\n        servers: []\n')
    assert FORMATS["traefik"]({}) == FORMATS["nginx"]({}), "an empty table in it would be refused"


def test_envoy():
    first, second = json.loads(FORMATS["envoy"](SERVICES))["resources"]
    assert first["cluster_name"] == "email.org-123"
    addresses = [one["endpoint"]["address"]["socket_address"] for one in first["endpoints"][0]["lb_endpoints"]]
    assert addresses == [{"address": "10.0.0.5", "port_value": 5556}, {"address": "fd00::6", "port_value": 5557}]
    assert second["endpoints"] == [{"lb_endpoints": []}]


def test_prometheus():
    groups = json.loads(FORMATS["prometheus"](SERVICES))
    assert [group["targets"] for group in groups] == [["10.0.0.5:5556"], ["[fd00::6]:5557"]]
    assert groups[1]["labels"] == {
        "plugin": "email", "org": "org-123", "worker": "org-123/email#1", "host": "web-2"
    }  # fmt: skip


def test_env_can_be_read_by_a_shell():
    text = FORMATS["env"](SERVICES)
    assert text == "EMAIL__ORG_123=10.0.0.5:5556,[fd00::6]:5557\nSTRIPE__ORG_123=\n"
    shell = subprocess.run(["sh", "-ec", f"{text}echo $EMAIL__ORG_123"], capture_output=True, text=True, check=True)
    assert shell.stdout == "10.0.0.5:5556,[fd00::6]:5557\n"
    assert FORMATS["env"]({("1st", "o"): ()}) == "_1ST__O=\n"


def test_json_and_hosts():
    first, second = json.loads(FORMATS["json"](SERVICES))
    assert [one["address"] for one in first["workers"]] == ["10.0.0.5", "fd00::6"]
    assert second == {"plugin": "stripe", "org": "org-123", "workers": []}
    by_name = {("email", "org-123"): (endpoint("web-7.example", 1), endpoint("10.0.0.5", 1), endpoint("10.0.0.5", 2))}
    assert FORMATS["hosts"](by_name).splitlines()[1:] == ["10.0.0.5\temail.org-123.plugin"]


AWKWARD = {
    name: (endpoint(f"10.0.0.{number}", 5556, plugin=name[0], org=name[1]),)
    for number, name in enumerate(
        [
            ("a.b", "c"),
            ("a", "b.c"),
            ("a-b", "c"),
            ("a_b", "c"),
            ("a+b", "c"),
            ("email", "Org"),
            ("email", "org"),
            ("email", "oRg"),
            ("@hay/plugin-email", "org"),
            ("@hay/plugin-email+debug", "org"),
            ("@a/b.", "c"),
            ("@a/b" + "-" * 200, "c"),
            ("1st", "1"),
        ]
    )
}
"""Services whose names come close to each other, or to what a file means by a character."""


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("nginx", r"upstream (\S+) "),
        ("haproxy", r"backend (\S+)\n"),
        ("traefik", r'"(\S+)":\n      loadBalancer'),
        ("envoy", r'"cluster_name": "(\S+)"'),
        ("env", r"(?m)^([A-Za-z0-9_]+)="),
        ("hosts", r"\t(\S+)"),
    ],
)
def test_two_services_are_two_in_every_file(form, pattern):
    text = FORMATS[form](AWKWARD)
    names = re.findall(pattern, text)
    folded = {name.lower() for name in names} if form in {"nginx", "hosts"} else set(names)
    left_out = 1 if form == "hosts" else 0  # one is too long for a host
    assert len(folded) == len(names) == len(AWKWARD) - left_out


def test_names_that_need_codes():
    assert "upstream ~ahay~splugin-email+debug.org {" in FORMATS["nginx"](AWKWARD)
    assert "backend ::ahay::splugin-email:debug.org\n" in FORMATS["haproxy"](AWKWARD)
    assert "Host(`x--ahay--splugin-email.org.plugin`)" in FORMATS["traefik"](AWKWARD)
    assert "\tx--ahay--splugin-email--pdebug.org.plugin\n" in FORMATS["hosts"](AWKWARD)
    assert "\naHAYsPLUGIN_EMAIL__ORG=10.0.0.8:5556\n" in FORMATS["env"](AWKWARD)


def test_a_shell_reads_every_variable():
    script = FORMATS["env"](AWKWARD) + "echo $aHAYsPLUGIN_EMAIL__ORG"
    done = subprocess.run(["sh", "-eu"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "10.0.0.8:5556\n", "")


@pytest.mark.skipif(not installed("haproxy"), reason="haproxy is not installed")
def test_haproxy_loads_whatever_the_services_are_called(tmp_path: Path):
    rest = "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nlisten any\n bind :1\n"
    config = tmp_path / "haproxy.cfg"
    config.write_text(rest + FORMATS["haproxy"](AWKWARD))
    done = subprocess.run([installed("haproxy"), "-c", "-f", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not installed("nginx"), reason="nginx is not installed")
def test_nginx_loads_whatever_the_services_are_called_and_those_without_a_worker(tmp_path: Path):
    exported = tmp_path / "workers.conf"
    exported.write_text(FORMATS["nginx"](SERVICES | AWKWARD))
    scoped = "location /a { proxy_pass http://~ahay~splugin-email+debug.org; }"
    server = f"server {{ listen 127.0.0.1:1; location / {{ proxy_pass http://stripe.org-123; }} {scoped} }}"
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ include {exported}; {server} }}\n")
    arguments = [installed("nginx"), "-t", "-c", str(config), "-p", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "syntax is ok" in done.stderr, done.stderr
