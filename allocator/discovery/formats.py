"""What the ready workers look like to a proxy: pure functions from services to the text of one file.

The rule of this file: equal services give equal text, byte for byte, so that a file is only replaced when it changed.
A service whose workers are all away stays in the file, without a worker: a proxy that names it must still load.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING

from allocator.model.encodings import ENVIRONMENT, HAPROXY, NGINX, PROXY, host_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from allocator.discovery.memory import ServiceName
    from allocator.model.endpoints import Endpoint

    Services = Mapping[ServiceName, Sequence[Endpoint]]

HEAD = "written by 'allocator export'; it is replaced when workers come and go"


def nginx(services: Services) -> str:
    """Return an `upstream` block for each service, for `include` in the `http` block.

    A failed try sends the request to the next worker, but takes nobody out of turn (`max_fails=0`): who is ready is
    known from the leases. By its own count nginx would leave a worker that was restarted out for ten seconds, and
    answer 502 when that happens to all of them.
    """
    lines = [f"# {HEAD}"]
    for name, endpoints in services.items():
        lines += [f"upstream {NGINX.service(*name)} {{"]
        lines += [f"    server {endpoint} max_fails=0;" for endpoint in endpoints] or ["    server 127.0.0.1:1 down;"]
        lines += ["}"]
    return _text(lines)


def haproxy(services: Services) -> str:
    """Return a `backend` section for each service, for one more `-f FILE`."""
    lines = [f"# {HEAD}"]
    for name, endpoints in services.items():
        lines += ["", f"backend {HAPROXY.service(*name)}", "    balance roundrobin", "    option redispatch"]
        lines += [f"    server {one.host}:{one.port} {one} check" for one in endpoints]
    return _text(lines)


def traefik(services: Services) -> str:
    """Return routers and services for Traefik's file provider, as YAML; the `Host` of each is `plugin.org.plugin`.

    A service whose name is too long for a host name has no router.
    """
    if not services:
        return _text([f"# {HEAD}"])  # an empty table in it is refused, and the workers of before would stay
    routers, balancers = [], []
    for name, endpoints in services.items():
        quoted = json.dumps(PROXY.service(*name))
        if host := host_name(*name):
            rule = json.dumps(f"Host(`{host}.plugin`)")
            routers += [f"    {quoted}:", f"      rule: {rule}", f"      service: {quoted}"]
        servers = [f"          - url: {json.dumps(f'http://{one}')}" for one in endpoints]
        balancers += [f"    {quoted}:", "      loadBalancer:"]
        balancers += ["        servers:", *servers] if servers else ["        servers: []"]
    routers = ["  routers:", *routers] if routers else []
    return _text([f"# {HEAD}", "http:", *routers, "  services:", *balancers])


def envoy(services: Services) -> str:
    """Return the clusters' endpoints for Envoy's file-based EDS, as JSON."""
    resources = [
        {
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": PROXY.service(*name),
            "endpoints": [
                {
                    "lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": {"address": one.address, "port_value": one.port}}}}
                        for one in endpoints
                    ]
                }
            ],
        }
        for name, endpoints in services.items()
    ]
    return _json({"resources": resources})


def prometheus(services: Services) -> str:
    """Return a target for each worker for Prometheus' `file_sd_configs`, as JSON."""
    return _json(
        [
            {
                "targets": [str(one)],
                "labels": {
                    "plugin": one.worker.plugin,
                    "org": one.worker.org,
                    "worker": str(one.worker),
                    "host": one.host,
                },
            }
            for one in _each(services)
        ]
    )


def env(services: Services) -> str:
    """Return a variable for each service: `EMAIL__ORG_123=10.0.0.5:5556,10.0.0.6:5556`."""
    return _text(
        [f"{ENVIRONMENT.service(*name)}={','.join(map(str, endpoints))}" for name, endpoints in services.items()]
    )


def plain_json(services: Services) -> str:
    """Return all services with their workers as a JSON array."""
    return _json(
        [
            {"plugin": plugin, "org": org, "workers": [one.as_json() for one in endpoints]}
            for (plugin, org), endpoints in services.items()
        ]
    )


def hosts(services: Services) -> str:
    """Return lines as in `/etc/hosts`: each worker's address with the name `plugin.org.plugin`.

    A host that advertises a name in place of an address cannot stand there and is left out; so is a service whose name
    is too long for a host name.
    """
    lines = [f"# {HEAD}"]
    for name, endpoints in services.items():
        host = host_name(*name)
        if host is None:
            continue
        addresses = dict.fromkeys(one.address for one in endpoints if _is_address(one.address))
        lines += [f"{address}\t{host}.plugin" for address in addresses]
    return _text(lines)


FORMATS: Mapping[str, Callable[[Services], str]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "traefik": traefik,
    "envoy": envoy,
    "prometheus": prometheus,
    "env": env,
    "json": plain_json,
    "hosts": hosts,
}
"""What can be exported, by name."""


def _each(services: Services) -> Iterable[Endpoint]:
    return (one for endpoints in services.values() for one in endpoints)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
