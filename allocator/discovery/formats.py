"""What the ready workers look like to a proxy: pure functions from services to the text of one file.

The rule of this file: equal services give equal text, byte for byte, so that a file is only replaced when it changed.
A service whose workers are all away stays in the file, without a worker: a proxy that names it must still load.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from allocator.discovery.memory import ServiceName
    from allocator.model.endpoints import Endpoint

    Services = Mapping[ServiceName, Sequence[Endpoint]]

HEAD = "written by 'allocator export'; it is replaced when workers come and go"


def service_name(name: ServiceName) -> str:
    """Return `plugin.org`; a dot inside of a name is doubled, so that no two services have one name."""
    return ".".join(part.replace(".", "..") for part in name)


def nginx(services: Services) -> str:
    """Return an `upstream` block for each service, for `include` in the `http` block.

    A failed try sends the request to the next worker, but takes nobody out of turn (`max_fails=0`): who is ready is
    known from the leases. By its own count nginx would leave a worker that was restarted out for ten seconds, and
    answer 502 when that happens to all of them.
    """
    lines = [f"# {HEAD}"]
    for name, endpoints in services.items():
        lines += [f"upstream {service_name(name)} {{"]
        lines += [f"    server {endpoint} max_fails=0;" for endpoint in endpoints] or ["    server 127.0.0.1:1 down;"]
        lines += ["}"]
    return _text(lines)


def haproxy(services: Services) -> str:
    """Return a `backend` section for each service, for one more `-f FILE`; `email+debug` is called `email:debug`."""
    lines = [f"# {HEAD}"]
    for name, endpoints in services.items():
        backend = service_name(name).replace("+", ":")  # haproxy refuses a `+`; no name has a colon
        lines += ["", f"backend {backend}", "    balance roundrobin", "    option redispatch"]
        lines += [f"    server {one.host}:{one.port} {one} check" for one in endpoints]
    return _text(lines)


def traefik(services: Services) -> str:
    """Return routers and services for Traefik's file provider, as YAML; the `Host` of each is `plugin.org.plugin`.

    A further port (`email+debug`) has no name that a host can have: it is a service without a router.
    """
    if not services:
        return _text([f"# {HEAD}", "http: {}"])
    routers, balancers = [], []
    for name, endpoints in services.items():
        quoted = json.dumps(service_name(name))
        if "+" not in name[0]:
            rule = json.dumps(f"Host(`{'.'.join(name)}.plugin`)")
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
            "cluster_name": service_name(name),
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
    """Return a variable for each service: `EMAIL__ORG_123=10.0.0.5:5556,10.0.0.6:5556`.

    Raises:
        ConfigurationError: When two services have the same variable.
    """
    variables: dict[str, ServiceName] = {}
    lines = []
    for name, endpoints in services.items():
        variable = "__".join(re.sub(r"[^A-Z0-9]", "_", part.upper()) for part in name)
        variable = variable if variable[0].isalpha() else f"_{variable}"
        if variable in variables:
            other = variables[variable]
            raise ConfigurationError(
                f"{name[1]}/{name[0]} and {other[1]}/{other[0]} are both called {variable}; "
                "choose with --org and --plugin, or export json"
            )
        variables[variable] = name
        lines.append(f"{variable}={','.join(map(str, endpoints))}")
    return _text(lines)


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

    A host that advertises a name in place of an address cannot stand there and is left out; so is a further port
    (`email+debug`), whose name no host can have.
    """
    lines = [f"# {HEAD}"]
    for name, endpoints in services.items():
        if "+" in name[0]:
            continue
        addresses = dict.fromkeys(one.address for one in endpoints if _is_address(one.address))
        lines += [f"{address}\t{'.'.join(name)}.plugin" for address in addresses]
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
