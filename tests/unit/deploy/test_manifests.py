"""The Kubernetes manifests and container files are valid, and agree with each other and the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nst_engine.weights import cache_directory
from nst_processes import free_port, nats_process
from nst_server.config import GatewaySettings, StoreSettings
from nst_server.jobs.backbone import connect
from nst_server.supervisor import write_nats_config

DEPLOY = Path(__file__).parents[3] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("[!k]*.yaml"))
BIN = Path(sys.executable).parent


def documents() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def named(kind: str, name: str) -> dict[str, Any]:
    found = [item for item in documents() if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1
    return found[0]


WORKLOADS = [item for item in documents() if item["kind"] in ("Deployment", "StatefulSet")]
OWN = [item for item in WORKLOADS if item["kind"] == "Deployment"]


def by_name(workload: dict[str, Any]) -> str:
    return workload["metadata"]["name"]


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


def environment(workload: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container(workload)["env"]}


def test_the_schema_of_kubernetes_1_33_accepts_every_manifest():
    command = [BIN / "kubernetes-validate", "--strict", "-k", "1.33", *MANIFESTS]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(re.findall("passed for resource", run.stdout + run.stderr)) == len(documents())


def test_kustomize_takes_every_manifest_and_image():
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in MANIFESTS]
    images = {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]}
    assert images == {container(workload)["image"] for workload in OWN}


def test_everything_is_in_the_namespace():
    namespaces = {item["metadata"].get("namespace") for item in documents() if item["kind"] != "Namespace"}
    assert namespaces == {named("Namespace", "nst")["metadata"]["name"]}


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet"])
def test_selectors_find_pods(kind):
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in WORKLOADS]
    for item in (item for item in documents() if item["kind"] == kind):
        selector = item["spec"].get("selector") or item["spec"]["podSelector"]
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= pod.items() for pod in labels), item["metadata"]["name"]


def test_services_lead_to_ports_that_exist():
    for service in (item for item in documents() if item["kind"] == "Service"):
        (workload,) = (item for item in WORKLOADS if by_name(item) == service["metadata"]["name"])
        ports = {port["name"] for port in container(workload)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_backbone_is_reached_by_those_who_need_it():
    (port,) = named("Service", "nats")["spec"]["ports"]
    (rule,) = named("NetworkPolicy", "nats")["spec"]["ingress"]
    allowed = rule["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    assert sorted(allowed) == sorted(map(by_name, OWN))
    assert {environment(workload)["NST_NATS"] for workload in OWN} == {f"nats://nats.nst:{port['port']}"}


@pytest.mark.parametrize("workload", OWN, ids=by_name)
def test_listening_addresses_are_the_declared_ports(workload):
    ports = {port["name"]: port["containerPort"] for port in container(workload)["ports"]}
    listening = {"metrics": environment(workload)["NST_METRICS_LISTEN"]}
    if "NST_LISTEN" in environment(workload):
        listening["grpc"] = environment(workload)["NST_LISTEN"]
    assert {name: f"0.0.0.0:{port}" for name, port in ports.items()} == listening
    annotations = workload["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == str(ports["metrics"])
    assert annotations["prometheus.io/path"] == "/metrics"


@pytest.mark.parametrize("workload", WORKLOADS, ids=by_name)
def test_probes_ask_ports_that_exist(workload):
    ports = {port["name"]: port["containerPort"] for port in container(workload)["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check = container(workload)[probe]
        if "grpc" in check:
            assert check["grpc"]["port"] == ports["grpc"]
            assert check["grpc"]["service"] == "nst.v1.StyleTransferService"
        else:
            assert check["httpGet"]["port"] in ports


@pytest.mark.parametrize("workload", WORKLOADS, ids=by_name)
def test_pods_are_locked_down(workload):
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    # Else Kubernetes sets NST_GATEWAY_* variables of its own.
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(workload)["resources"]["limits"]["memory"]
    assert container(workload)["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=by_name)
def test_mounts_have_volumes_and_volumes_exist(workload):
    pod = workload["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    mounts = {mount["name"] for mount in container(workload).get("volumeMounts", [])}
    assert mounts == volumes.keys() | claims
    for volume in volumes.values():
        if "configMap" in volume:
            named("ConfigMap", volume["configMap"]["name"])
        if "persistentVolumeClaim" in volume:
            named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


@pytest.mark.parametrize("workload", OWN, ids=by_name)
def test_the_command_line_knows_every_variable(workload, monkeypatch):
    (command,) = container(workload)["args"]
    run = subprocess.run([BIN / "nst-server", command, "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    known = set(re.findall(r"NST_[A-Z_]+", run.stdout))
    # The weights' cache belongs to the engine, which reads it without a command line.
    monkeypatch.setenv("NST_CACHE", "/elsewhere")
    assert cache_directory() == Path("/elsewhere")
    assert environment(workload).keys() <= known | {"NST_CACHE"}


def test_the_cache_is_a_volume():
    workload = named("Deployment", "nst-model-server")
    mounts = {mount["name"]: mount["mountPath"] for mount in container(workload)["volumeMounts"]}
    assert mounts["weights"] == environment(workload)["NST_CACHE"]


def test_a_model_server_has_one_gpu():
    resources = container(named("Deployment", "nst-model-server"))["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 1


def test_there_is_time_to_drain():
    gateway = named("Deployment", "nst-gateway")
    grace = gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    waits = container(gateway)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace > waits + GatewaySettings().drain_seconds


def test_the_gateway_has_the_memory_that_its_settings_allow_it():
    settings = GatewaySettings()
    held = 2 * settings.max_upload_bytes + settings.max_result_bytes
    limit = container(named("Deployment", "nst-gateway"))["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) * 2**30 > 2 * held + settings.picture_cache_bytes


def test_the_collector_of_nats_keeps_below_its_memory_limit():
    (container,) = named("StatefulSet", "nats")["spec"]["template"]["spec"]["containers"]
    (soft,) = [each["value"] for each in container["env"] if each["name"] == "GOMEMLIMIT"]
    hard = container["resources"]["limits"]["memory"]
    assert 0.8 < int(soft.removesuffix("MiB")) / (1024 * int(hard.removesuffix("Gi"))) < 0.95


def test_the_volume_holds_what_nats_may_store():
    # NATS counts in powers of two.
    (allowed,) = re.findall(r"max_file_store: (\d+)GB", nats_configuration())
    (claim,) = named("StatefulSet", "nats")["spec"]["volumeClaimTemplates"]
    assert int(allowed) < int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))


def nats_configuration() -> str:
    return named("ConfigMap", "nats")["data"]["nats.conf"]


async def test_a_gateway_with_its_defaults_sets_the_store_up_in_the_nats_of_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("POD_NAME", "nats-0")
    path = tmp_path / "nats.conf"
    path.write_text(nats_configuration().replace("store_dir: /data", f"store_dir: {tmp_path}/data"))
    ports = free_port(), free_port()
    elsewhere = ("-a", "127.0.0.1", "-p", str(ports[0]), "-m", str(ports[1]))
    with nats_process(tmp_path, f"127.0.0.1:{ports[0]}", "-c", str(path), *elsewhere) as url:
        async with connect(url, "gateway", StoreSettings()) as backbone:
            stored = await backbone.jetstream.account_info()
    assert stored.streams > 0


def test_what_nats_has_acknowledged_is_on_the_disk_as_with_the_private_one(tmp_path):
    private = json.loads(write_nats_config(tmp_path, "127.0.0.1:4222").read_text())
    (interval,) = re.findall(r"sync_interval: (\w+)", nats_configuration())
    assert interval == private["jetstream"]["sync_interval"] == "always"


@pytest.mark.parametrize(("file", "extra"), [("gateway", "gateway,tracing"), ("model-server", "server,faces,tracing")])
def test_container_files_agree_with_the_manifests(file, extra):
    text = (DEPLOY / f"{file}.Dockerfile").read_text()
    workload = named("Deployment", f"nst-{file}")
    assert f"'.[{extra}]'" in text
    assert "-c constraints.txt" in text
    user = workload["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:" in text
    assert f"--uid {user}" in text
    assert f'CMD ["{container(workload)["args"][0]}"]' in text
    (exposed,) = re.findall(r"EXPOSE (.+)", text)
    assert sorted(map(int, exposed.split())) == sorted(port["containerPort"] for port in container(workload)["ports"])
    for name, value in re.findall(r"(NST_[A-Z_]+)=(\S+)", text):
        assert environment(workload)[name] == value
    for copied in re.findall(r"^COPY (\w.*) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parent / source).exists() for source in copied.split())
