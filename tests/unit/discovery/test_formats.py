"""What each export looks like: byte for byte, sorted, loadable also when a service has no worker."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from servers import installed

from allocator import ConfigurationError, Endpoint, WorkerId
from allocator.discovery.formats import FORMATS, service_name

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
    assert FORMATS["traefik"]({}).endswith("http: {}\n")


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


def test_env_refuses_two_services_of_one_variable():
    with pytest.raises(ConfigurationError, match=r"a_b/email and a-b/email are both called EMAIL__A_B"):
        FORMATS["env"]({("email", "a-b"): (), ("email", "a_b"): ()})


def test_json_and_hosts():
    first, second = json.loads(FORMATS["json"](SERVICES))
    assert [one["address"] for one in first["workers"]] == ["10.0.0.5", "fd00::6"]
    assert second == {"plugin": "stripe", "org": "org-123", "workers": []}
    by_name = {("email", "org-123"): (endpoint("web-7.example", 1), endpoint("10.0.0.5", 1), endpoint("10.0.0.5", 2))}
    assert FORMATS["hosts"](by_name).splitlines()[1:] == ["10.0.0.5\temail.org-123.plugin"]


def test_no_two_services_have_one_name():
    assert service_name(("a.b", "c")) != service_name(("a", "b.c"))


FURTHER = {
    ("email", "o"): (endpoint("10.0.0.5", 5556),),
    ("email+debug", "o"): (endpoint("10.0.0.5", 5557, plugin="email+debug"),),
}


def test_a_further_port_of_a_worker_breaks_nobodys_file():
    assert "backend email:debug.o\n" in FORMATS["haproxy"](FURTHER)
    assert "Host(`email.o.plugin`)" in FORMATS["traefik"](FURTHER)
    assert "+debug.o.plugin" not in FORMATS["traefik"](FURTHER)
    assert FORMATS["hosts"](FURTHER).splitlines()[1:] == ["10.0.0.5\temail.o.plugin"]
    assert "EMAIL_DEBUG__O=10.0.0.5:5557\n" in FORMATS["env"](FURTHER)


@pytest.mark.skipif(not installed("haproxy"), reason="haproxy is not installed")
def test_haproxy_loads_what_is_exported_with_a_further_port(tmp_path: Path):
    rest = "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nlisten any\n bind :1\n"
    config = tmp_path / "haproxy.cfg"
    config.write_text(rest + FORMATS["haproxy"](FURTHER))
    done = subprocess.run([installed("haproxy"), "-c", "-f", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not installed("nginx"), reason="nginx is not installed")
def test_nginx_loads_what_is_exported_even_where_a_service_has_no_worker(tmp_path: Path):
    exported = tmp_path / "workers.conf"
    exported.write_text(FORMATS["nginx"](SERVICES | FURTHER))
    server = "server { listen 127.0.0.1:1; location / { proxy_pass http://stripe.org-123; } }"
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ include {exported}; {server} }}\n")
    words = [installed("nginx"), "-t", "-c", str(config), "-p", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "syntax is ok" in done.stderr, done.stderr
