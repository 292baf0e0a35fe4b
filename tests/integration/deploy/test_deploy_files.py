"""What is in deploy/ is well formed, by the tools that know each format."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
import yaml

from allocator.model.errors import EXIT_USAGE

if TYPE_CHECKING:
    from allocator import PoolSpec

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
YAMLS = sorted([*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml"), ROOT / "docker-compose.yml"])
BIN = Path(sys.executable).parent
LINT_RULES = (
    "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: disable, comments: disable}}"
)


def run(*arguments: str | Path) -> str:
    done = subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml(path: Path) -> None:
    run(BIN / "yamllint", "--strict", "-d", LINT_RULES, path)


def test_docker_compose_follows_its_specification() -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml")


def test_files_that_docker_compose_mounts_or_builds_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()


def manifests() -> list:
    return [
        pytest.param(document, id=f"{path.name}-{document['kind']}-{document['metadata']['name']}")
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def pod_of(manifest: dict) -> dict | None:
    """Return the pod that a manifest makes, or None."""
    if manifest["kind"] == "Pod":
        return manifest["spec"]
    return manifest["spec"].get("template", {}).get("spec")


def test_kubernetes_asks_for_no_rights_and_covers_what_a_fleet_needs() -> None:
    kinds = {(one.values[0]["kind"], one.values[0]["metadata"]["name"]) for one in manifests()}
    assert not {kind for kind, _ in kinds if "Role" in kind or kind == "ServiceAccount"}
    for part in ("api", "reconciler"):
        for kind in ("Deployment", "NetworkPolicy", "PodDisruptionBudget"):
            assert (kind, f"portlease-{part}") in kinds
    assert ("DaemonSet", "portlease-agent") in kinds


@pytest.mark.parametrize("manifest", manifests())
def test_kubernetes_manifests_follow_the_schemas(manifest: dict) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(manifest, "1.33", strict=True)


@pytest.mark.parametrize("manifest", manifests())
def test_kubernetes_containers_are_locked_down_and_selectors_meet_their_pods(manifest: dict) -> None:
    pod = pod_of(manifest)
    if pod is None:
        return
    if manifest["kind"] != "Pod":
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert manifest["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        chowns = container.get("command", [""])[0] == "chown"
        assert context["capabilities"] == {"drop": ["ALL"]} | ({"add": ["CHOWN"]} if chowns else {})
        assert context.get("runAsNonRoot", True) is not chowns
        assert "resources" in container
        assert not re.search(r":latest$|^[^:]+$", container["image"])


@pytest.mark.parametrize("manifest", manifests())
def test_whoever_uses_the_name_of_a_node_states_which_machine_it_is(manifest: dict) -> None:
    pod = pod_of(manifest) or {}
    containers = [*pod.get("containers", []), *pod.get("initContainers", [])]
    users = [one for one in containers if "ALLOCATOR_HOST" in {variable["name"] for variable in one.get("env", [])}]
    assert bool(users) == pod.get("hostNetwork", False)
    for container in users:
        mounts = [one for one in container["volumeMounts"] if one["mountPath"] == "/etc/machine-id"]
        assert [one["readOnly"] for one in mounts] == [True], container["name"]
        volume = next(one for one in pod["volumes"] if one["name"] == mounts[0]["name"])
        assert volume["hostPath"] == {"path": "/etc/machine-id", "type": "File"}


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("Dockerfile*")), ids=lambda path: path.name)
def test_dockerfiles(path: Path) -> None:
    if not (BIN / "hadolint").exists():
        pytest.skip("hadolint has no wheel for this platform")
    run(BIN / "hadolint", "--ignore", "DL3013", path)


def commands_in_files() -> list[tuple[str, list[str]]]:
    """Return the `allocator` commands that compose and Kubernetes start, with where they stand."""
    found = []
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {name: one for name, one in services.items() if "build" in one and "entrypoint" not in one}
    found += [(name, service["command"]) for name, service in ours.items()]
    for parameter in manifests():
        pod = pod_of(parameter.values[0]) or {}
        for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
            if "portlease" in container["image"] and "command" not in container:
                found.append((container["name"], container["args"]))
    return found


@pytest.mark.parametrize(
    ("where", "arguments"), commands_in_files(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_commands_that_are_started_exist_with_these_options(where: str, arguments: list[str]) -> None:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    groups = [argument for argument in own[:2] if not argument.startswith("-")]
    path = groups if groups[0] in {"host", "pool", "db"} else groups[:1]
    help_text = run(sys.executable, "-m", "allocator", *path, "--help")
    for argument in own:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in help_text, f"{where}: {argument}"


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prometheus' own tool, unpacked from the distribution's package: nothing is installed and no service starts."""
    found = shutil.which("promtool")
    if found:
        return Path(found)
    directory = tmp_path_factory.mktemp("promtool")
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        arguments = ["apt-get", "download", "prometheus"]
        subprocess.run(arguments, cwd=directory, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        for package in directory.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(directory / "root")], check=True)
            return directory / "root/usr/bin/promtool"
    pytest.skip("promtool is not installed; the package prometheus of the distribution has it")


def test_alert_rules_are_accepted_and_fire_when_they_should(promtool: Path) -> None:
    run(promtool, "check", "rules", DEPLOY / "prometheus/alerts.yml")
    run(promtool, "test", "rules", DEPLOY / "prometheus/alerts_test.yml")


def test_the_scrape_settings_are_accepted(promtool: Path, tmp_path: Path) -> None:
    (tmp_path / "prometheus").write_text("token")
    for name in ("prometheus.yml", "alerts.yml"):
        text = (DEPLOY / "prometheus" / name).read_text()
        (tmp_path / name).write_text(text.replace("/credentials/", f"{tmp_path}/"))
    run(promtool, "check", "config", tmp_path / "prometheus.yml")


def test_whoever_holds_leases_is_scraped() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    served = set()
    for name, service in services.items():
        arguments = [str(argument).replace("--metrics-listen=", "") for argument in service.get("command", [])]
        served |= {
            f"{name}:{argument.rpartition(':')[2]}"
            for argument in arguments
            if re.fullmatch(r"0\.0\.0\.0:\d+", argument)
        }
        assert "build" not in service or arguments[:1] != ["run"] or any(one.startswith(f"{name}:") for one in served)
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    scraped = {target for job in jobs for group in job.get("static_configs", []) for target in group["targets"]}
    assert scraped == served
    for where, arguments in commands_in_files():
        assert arguments[0] not in {"run", "agent"} or any("--metrics-listen" in argument for argument in arguments), (
            where
        )


@pytest.mark.parametrize("manifest", manifests())
def test_the_port_of_metrics_is_declared_so_that_two_on_one_node_are_seen(manifest: dict) -> None:
    for container in (pod_of(manifest) or {}).get("containers", []):
        ports = {str(port["containerPort"]) for port in container.get("ports", []) if port["name"] == "metrics"}
        text = " ".join(container.get("args", []))
        assert set(re.findall(r"--metrics-listen[= ]\S+:(\d+)", text)) == ports


def commands_in_alerts() -> list[str]:
    """Return the `allocator` commands that alerts tell people to type."""
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    texts = [re.sub(r"{{.*?}}", "web-1", text) for rule in rules for text in rule["annotations"].values()]
    return sorted({found for text in texts for found in re.findall(r"\ballocator ([\w./=-]+(?: [\w./=-]+)*)", text)})


@pytest.mark.parametrize("command", commands_in_alerts())
def test_the_commands_that_alerts_name_can_be_typed(
    command: str, redis_url: str, pool: PoolSpec, tmp_path: Path
) -> None:
    (tmp_path / "pool.toml").write_text(f'[pool]\nname = "{pool.name}"\nfirst = {pool.first}\nlast = {pool.last}\n')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
    own = {"XDG_STATE_HOME": str(tmp_path), "ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name}
    with subprocess.Popen(
        [sys.executable, "-m", "allocator", *command.split()], env=kept | own | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "leading" in line:  # of those that stay, the last word on whether they could be typed
                process.terminate()
        assert process.wait() != EXIT_USAGE, printed


def metric_names() -> set[str]:
    """Return the names under which this project's metrics are scraped."""
    from prometheus_client import CollectorRegistry

    from allocator.api.metrics import Metrics
    from allocator.client.counts import HolderCounts, HolderMetrics
    from allocator.database.metrics import PrometheusGauge

    reconciler = CollectorRegistry()
    PrometheusGauge(reconciler, "p")
    names = set()
    holder = CollectorRegistry()
    holder.register(HolderMetrics(Mock(counts={"p": HolderCounts()})))
    for registry in (Metrics().registry, reconciler, holder):
        for metric in registry.collect():
            names |= {metric.name, metric.name + "_total", metric.name + "_bucket", metric.name + "_count"}
    return names


def asked_for() -> list[str]:
    """Return the expressions of the dashboard and of the alerts."""
    board = json.loads((DEPLOY / "grafana/portlease.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    return asked + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_dashboard_and_alerts_ask_only_for_metrics_that_exist() -> None:
    unknown = {name for expression in asked_for() for name in re.findall(r"allocator_\w+", expression)} - metric_names()
    assert unknown == set()


def test_the_dashboard_begins_with_the_charts_of_the_status_page() -> None:
    page = (ROOT / "allocator/api/page/index.html").read_text()
    board = json.loads((DEPLOY / "grafana/portlease.json").read_text())
    charts = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [panel["title"] for panel in board["panels"]][: len(charts)] == charts


def test_what_every_server_shows_of_the_pool_is_not_counted_twice() -> None:
    from allocator.api.metrics import Metrics

    shown = Metrics()
    whole_pool = (shown.ports, shown.leased, shown.free, shown.resting, shown.restarts, shown.waiters)
    labels = {metric._name: ", ".join(metric._labelnames) for metric in whole_pool}
    for expression in asked_for():
        for name in re.findall(r"allocator_\w+", expression):
            if name in labels:
                assert f"max by ({labels[name]}) ({name}" in expression, expression
