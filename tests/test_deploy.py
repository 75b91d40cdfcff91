"""What deploy/ has: the commands of unit, image and manifests run as they stand; the manifests fit their schemas."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from model_folders import add_version

import convserve
from convserve.cli.main import main
from convserve.client import Client
from convserve.server.options import OPTIONS, resolve

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OURS = [sys.executable, "-m", "convserve"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(s|min)?", text).groups()  # type: ignore[union-attr]
    return float(number) * (60 if unit == "min" else 1)


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a command that serves, with --json and on free ports; yield its process and address, kill it at the end."""
    if any(part.startswith("--http-port=") for part in command):
        command = [*command, "--http-port", "0"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVSERVE_")}
    with subprocess.Popen(
        [*command, "--json", "--port", "0"],
        cwd=ROOT,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            text = "".join(iter(process.stdout.readline, "}\n")) + "}"
            yield process, "127.0.0.1:" + json.loads(text)["address"].rpartition(":")[2]
        finally:
            process.kill()


def ends_well(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.fixture
def models(tmp_path: Path) -> Path:
    add_version(tmp_path / "models", "small", 1)
    return tmp_path / "models"


# ---- systemd


def unit() -> dict[str, list[str]]:
    """Return the values of the unit's keys in their order."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "convserve.service").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_runs_says_when_it_is_ready_and_reloads(tmp_path: Path, models: Path) -> None:
    [start], [reload] = unit()["ExecStart"], unit()["ExecReload"]
    binary, *arguments = shlex.split(start)
    assert binary == "/opt/convserve/bin/convserve"
    config = tmp_path / "serve.toml"
    config.write_text((DEPLOY / "serve.toml").read_text().replace("/srv/convserve/models", str(models)))
    arguments = [str(config) if part == "/etc/convserve/serve.toml" else part for part in arguments]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        with started([*OURS, *arguments], NOTIFY_SOCKET=str(tmp_path / "notify")) as (process, address):
            assert manager.recv(100) == b"READY=1\n"
            with Client(address) as client:
                # ready means that the models are, too
                assert [one["state"] for one in client.list_models()] == ["READY"]
                add_version(models, "other", 1)
                subprocess.run(shlex.split(reload.replace("$MAINPID", str(process.pid))), check=True)
                end = time.monotonic() + 20
                while len(client.list_models()) < 2:
                    assert time.monotonic() < end
                    time.sleep(0.02)
            ends_well(process)


def test_an_abstract_socket_is_told_and_one_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    name = f"convserve-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(20)
        for workers in ("1", "2"):
            with started([*OURS, "serve", "--workers", workers], NOTIFY_SOCKET="@" + name) as (process, _):
                assert manager.recv(100) == b"READY=1\n"
                ends_well(process)
    with started([*OURS, "serve"], NOTIFY_SOCKET=str(tmp_path / "none")) as (process, address):
        assert main(["health", address]) == 0
        ends_well(process)


def test_the_unit_leaves_time_and_room() -> None:
    settings = {name: one.value for name, one in resolve({}, file=str(DEPLOY / "serve.toml"), environ={}).items()}
    assert seconds(unit()["TimeoutStopSec"][0]) > settings["grace"]
    [most] = unit()["MemoryMax"]
    assert int(most.removesuffix("G")) << 30 > settings["memory_budget"]
    assert unit()["Environment"] == ["XDG_CACHE_HOME=/var/cache"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze, which checks units, is not here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    file = tmp_path / "convserve.service"
    file.write_text((DEPLOY / "convserve.service").read_text().replace("/opt/convserve/bin/convserve", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if file.name in line]
    assert told == []


# ---- the image


def image() -> dict[str, list[str]]:
    """Return the arguments of the Containerfile's instructions in their order, those of the last stage."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            found = {name: values for name, values in found.items() if name in ("FROM", "ARG")}
        if instruction and not instruction.startswith("#"):
            found.setdefault(instruction, []).append(rest.strip())
    return found


def test_the_image_serves_and_its_health_check_tells(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = image()
    environment = dict(re.findall(r"(\w+)=(\S+)", found["ENV"][0]))
    given = {name: environment[name] for name in environment if name.startswith("CONVSERVE_SERVE_")}
    assert given["CONVSERVE_SERVE_HOST"] == "0.0.0.0"
    command = json.loads(found["ENTRYPOINT"][0]) + json.loads(found["CMD"][0])
    assert command[0] == "convserve"
    arguments = [str(models) if part == "/models" else part for part in command[1:]]
    options, _, check = found["HEALTHCHECK"][0].partition(" CMD ")
    assert "--interval=" in options
    check = json.loads(check)
    assert check[0] == "convserve"
    with started([*OURS, *arguments], **{**given, "CONVSERVE_SERVE_HOST": "127.0.0.1"}) as (process, address):
        assert main([*check[1:], address, "--wait", "20"]) == 0
        with Client(address) as client:
            assert [one["name"] for one in client.list_models()] == ["small"]
        ends_well(process)
    assert main([*check[1:], address]) == 1
    capsys.readouterr()


def test_the_image_is_nobodys_and_speaks_on_the_default_port() -> None:
    found = image()
    assert found["USER"] == ["10001:10001"]
    assert found["EXPOSE"] == [str(OPTIONS["port"].default)]
    assert found["STOPSIGNAL"] == ["SIGTERM"]
    assert len(found["FROM"]) == 2
    assert "gcc" not in " ".join(found["RUN"])


def test_the_build_gets_what_it_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    wanted = {line[1:] for line in lines if line.startswith("!") and "*" not in line}
    assert "*" in lines
    assert wanted >= {"convserve", "protos", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in wanted)


# ---- Kubernetes and KServe


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"].get("template", document)["spec"]
    [container] = spec["containers"]
    return dict(container)


@pytest.mark.parametrize("number", [0, 1], ids=["deployment", "service"])
def test_the_manifest_fits_the_schema_of_kubernetes(number: int) -> None:
    document, version = documents("kubernetes.yaml")[number], kubernetes_validate.latest_version()
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_the_containers_command_runs(name: str, models: Path) -> None:
    container = container_of(documents(name)[0])
    folder = "/mnt/models" if name == "kserve.yaml" else "/models"
    arguments = [part.replace(f"={folder}", f"={models}") for part in container["args"]]
    assert f"--repository={models}" in arguments
    with started([*OURS, *arguments]) as (process, address):
        assert main(["health", address, "--wait", "20"]) == 0
        ends_well(process)


def ports_of(container: dict[str, Any]) -> dict[str, int]:
    """Return the ports that a container's command listens on."""
    given = dict(part.removeprefix("--").split("=") for part in container["args"] if "port=" in part)
    return {"grpc": int(given.get("port", OPTIONS["port"].default)), "http": int(given["http-port"])}


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_memory_has_room_for_more_than_the_budget(name: str) -> None:
    container = container_of(documents(name)[0])
    [budget] = [part.partition("=")[2] for part in container["args"] if part.startswith("--memory-budget=")]
    units = {"Gi": 1 << 30, "Mi": 1 << 20}
    for size in (container["resources"][kind]["memory"] for kind in ("requests", "limits")):
        assert int(size[:-2]) * units[size[-2:]] > OPTIONS["memory_budget"].parse(budget)


def test_probes_and_ports_are_those_of_the_command() -> None:
    deployment, service = documents("kubernetes.yaml")
    container = container_of(deployment)
    ports = ports_of(container)
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    probes = [value for key, value in container.items() if key.endswith("Probe")]
    assert len(probes) == 3
    assert all(probe["grpc"] == {"port": ports["grpc"]} for probe in probes)
    assert deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])


def test_a_pod_has_time_to_drain() -> None:
    deployment, service = documents("kubernetes.yaml")
    container, pod = container_of(deployment), deployment["spec"]["template"]["spec"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    [grace] = [float(part.partition("=")[2]) for part in container["args"] if part.startswith("--grace=")]
    assert pod["terminationGracePeriodSeconds"] > pause + grace
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == image()["USER"][0]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert f"XDG_CACHE_HOME={mounted['cache']}" in image()["ENV"][0]


def test_the_runtime_serves_what_the_service_asks_for() -> None:
    runtime, service = documents("kserve.yaml")
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert container_of(runtime)["name"] == "kserve-container"
    ports = ports_of(container_of(runtime))
    assert [(port["name"], port["containerPort"]) for port in model["ports"]] == [("h2c", ports["grpc"])]
    # what KServe takes where a service names no port
    assert ports["http"] == 8080
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(ports["http"])


def test_the_version_of_the_images_is_this_one() -> None:
    for name in ("kubernetes.yaml", "kserve.yaml"):
        assert container_of(documents(name)[0])["image"].rpartition(":")[2] == convserve.__version__
