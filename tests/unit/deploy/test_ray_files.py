"""The cluster files: what Ray's own checks, Kubernetes' schemas and the rules of this repository say about them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator

from deploy.launch.ray.keeper import SPOT_NOTICE_S
from tests.e2e import cluster_guide, hosts

pytest.importorskip("ray", reason="needs the extra baton-serve[ray]")

ROOT = Path(__file__).parents[3]
RAY_FILES = ROOT / "deploy" / "ray"
KUBERAY = RAY_FILES / "kuberay"
SCHEMAS = Path(__file__).parent / "ray_files"
CLUSTERS = sorted(RAY_FILES.glob("cluster-*.yaml"))
MANIFESTS = sorted(KUBERAY.glob("*.yaml"))
KUBERNETES = "1.37"


def load(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def prepared(path: Path) -> dict[str, Any]:
    """The file as `ray up` sees it: with the provider's defaults, and checked against Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(load(path))
    validate_config(config)
    return config


def start_commands(config: dict[str, Any]) -> list[str]:
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_ray_accepts_the_cluster_file(path: Path) -> None:
    config = prepared(path)
    assert config["cluster_name"] == "baton"
    assert set(load(path)) <= set(config)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_a_misspelt_key_of_a_cluster_file_is_refused(path: Path, tmp_path: Path) -> None:
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("file_mounts:", "file_mount:"))
    with pytest.raises(jsonschema.ValidationError, match="file_mount"):
        prepared(wrong)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_every_node_asks_for_the_secret(path: Path) -> None:
    config = prepared(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    assert "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token" in config["setup_commands"]


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_ray_listens_on_one_address_and_its_dashboard_on_loopback(path: Path) -> None:
    config = prepared(path)
    for command in start_commands(config):
        assert "--node-ip-address=$" in command
        assert "RAY_enable_metrics_collection=0" in command
        assert "RAY_worker_niceness=0" in command
    [head] = [command for command in start_commands(config) if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_all_of_baton_is_carried_to_the_hosts(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    wanted |= {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    mounts = {
        target: source
        for target, source in load(path)["file_mounts"].items()
        if "/baton/" in target
    }
    assert mounts == {f"~/baton/{name}": name for name in wanted}
    assert all((ROOT / name).exists() for name in mounts.values())


def test_roles_on_premise_come_from_the_worker_start_command() -> None:
    config = prepared(RAY_FILES / "cluster-onprem.yaml")
    assert list(config["available_node_types"]) == ["local.cluster.node"]
    [command] = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    assert '{"prefill_slot":1}' in command
    assert '{"decode_slot":1}' in command
    assert '--resources="$slots" --labels="$labels"' in command


def test_roles_on_aws_are_node_types() -> None:
    config = prepared(RAY_FILES / "cluster-aws.yaml")
    types = config["available_node_types"]
    slots = {name: set(kind["resources"]) - {"CPU"} for name, kind in types.items()}
    assert slots == {
        "head": set(),
        "prefill": {"prefill_slot"},
        "decode": {"decode_slot"},
        "prefill-spot": {"prefill_slot"},
        "decode-spot": {"decode_slot"},
    }
    assert types["head"]["max_workers"] == 0
    assert types["head"]["resources"] == {"CPU": 0}
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"prefill-spot", "decode-spot"}
    for name in spot:
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types[name]["labels"]["ray.io/market-type"] == "spot"
        assert types[name]["priority"] > types[name.removesuffix("-spot")].get("priority", 0)


def test_ec2_knows_every_field_of_every_machine() -> None:
    """Against EC2's own description of RunInstances, which botocore carries."""
    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for kind in prepared(RAY_FILES / "cluster-aws.yaml")["available_node_types"].values():
        machine = dict(kind["node_config"])
        machine["SubnetId"] = machine.pop("SubnetIds")[0]  # as Ray does
        report = ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, shape)
        assert report.generate_report() == ""


def test_ray_makes_no_security_group_of_its_own() -> None:
    """The one that it would make lets the whole internet reach port 22."""
    for kind in prepared(RAY_FILES / "cluster-aws.yaml")["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["SubnetIds"]


def test_ray_cluster_follows_its_schema() -> None:
    schema = json.loads((SCHEMAS / "raycluster.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(load(KUBERAY / "raycluster.yaml"), schema)


def coordinator() -> dict[str, Any]:
    """The pod's specification."""
    pod: dict[str, Any] = load(KUBERAY / "coordinator.yaml")["spec"]["template"]
    return pod


def test_the_service_and_the_policy_find_their_pods() -> None:
    labels = coordinator()["metadata"]["labels"]
    service = load(KUBERAY / "service.yaml")["spec"]
    assert service["selector"].items() <= labels.items()
    guarded = load(KUBERAY / "networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"]
    pods = [group["template"]["metadata"]["labels"] for group in groups().values()]
    assert all(guarded.items() <= each.items() for each in (labels, *pods))


def test_the_coordinator_joins_the_cluster_with_its_secret() -> None:
    [container] = coordinator()["spec"]["containers"]
    name = load(KUBERAY / "raycluster.yaml")["metadata"]["name"]
    assert f"ray start --address={name}-head-svc:6379 --num-cpus=0 " in container["command"][-1]
    assert "exec baton serve --launcher ray --ray-address auto " in container["command"][-1]
    secrets = {
        each["name"]: each["valueFrom"]["secretKeyRef"]
        for each in container["env"]
        if "valueFrom" in each
    }
    assert secrets["RAY_AUTH_TOKEN"] == {"name": name, "key": "auth_token"}


def test_the_coordinator_is_ready_when_a_request_can_be_served() -> None:
    [container] = coordinator()["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": "http"}


def test_there_is_time_to_drain_before_a_pod_is_killed() -> None:
    """`baton drain --all` itself is shown by tests/e2e/test_server_drain.py."""
    spec = coordinator()["spec"]
    stop = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[:4] == ["baton", "drain", "--all", "--timeout"]
    assert spec["terminationGracePeriodSeconds"] >= int(stop[4]) + 30
    for name in ("prefill", "decode"):
        grace_s = groups()[name]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s >= SPOT_NOTICE_S + 30


KEEPER = """
import signal, sys
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
print("here", flush=True)
while not heard:
    signal.pause()
print("told", flush=True)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
def test_a_worker_pod_tells_its_keepers_and_waits_until_they_are_gone(tmp_path: Path) -> None:
    """The very script of the manifest, among processes of its own: two keepers, and one that is none."""
    script = groups()["prefill"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]
    lines = [
        f'python3 -c "$KEEPER" deploy.launch.ray.{what} > {name} & until [ -s {name} ]; do :; done'
        for name, what in (("a", "keeper"), ("b", "keeper"), ("c", "seat"))
    ]
    pod = tmp_path / "pod.sh"
    pod.write_text("\n".join([*lines, '"$@"', "grep -c told a b c"]), encoding="utf-8")
    done = subprocess.run(
        ["unshare", "-p", "-f", "--mount-proc", "bash", str(pod), *script["exec"]["command"]],
        cwd=tmp_path,
        env={**os.environ, "KEEPER": KEEPER},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["a:1", "b:1", "c:0"], done.stderr


def test_a_misspelt_field_of_the_ray_cluster_is_refused() -> None:
    schema = json.loads((SCHEMAS / "raycluster.schema.json").read_text(encoding="utf-8"))
    wrong = load(KUBERAY / "raycluster.yaml")
    wrong["spec"]["enableInTreeAutoscaler"] = wrong["spec"].pop("enableInTreeAutoscaling")
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscaler"):
        jsonschema.validate(wrong, schema)


def groups() -> dict[str, dict[str, Any]]:
    spec = load(KUBERAY / "raycluster.yaml")["spec"]
    return {"head": spec["headGroupSpec"]} | {
        group["groupName"]: group for group in spec["workerGroupSpecs"]
    }


@pytest.mark.parametrize("name", ["head", "prefill", "decode"])
def test_kubernetes_accepts_the_pods(name: str) -> None:
    template = {"metadata": {"name": name}, **groups()[name]["template"]}
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["service.yaml", "networkpolicy.yaml", "coordinator.yaml"])
def test_kubernetes_accepts_the_manifest(name: str) -> None:
    kubernetes_validate.validate(load(KUBERAY / name), KUBERNETES, strict=True)


def test_every_manifest_is_checked() -> None:
    names = {"raycluster.yaml", "coordinator.yaml", "service.yaml", "networkpolicy.yaml"}
    assert {path.name for path in MANIFESTS} == names


def test_kubernetes_cluster_has_one_group_a_role_and_an_idle_head() -> None:
    spec = load(KUBERAY / "raycluster.yaml")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    slots = {group["groupName"]: group["resources"] for group in spec["workerGroupSpecs"]}
    assert slots == {"prefill": {"prefill_slot": "1"}, "decode": {"decode_slot": "1"}}


@pytest.mark.parametrize("name", ["head", "prefill", "decode", "coordinator"])
def test_containers_run_as_nobody_who_matters(name: str) -> None:
    template = coordinator() if name == "coordinator" else groups()[name]["template"]
    [container] = template["spec"]["containers"]
    context = container["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_ray_versions_agree() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    version = load(KUBERAY / "raycluster.yaml")["spec"]["rayVersion"]
    assert f"\nray=={version}\n" in constraints
    assert f"rayproject/ray:{version}-" in (KUBERAY / "Dockerfile").read_text(encoding="utf-8")


def test_every_block_of_the_guide_that_says_it_is_run_is_run() -> None:
    typed = (ROOT / "tests" / "e2e" / "test_ray_up.py").read_text(encoding="utf-8")
    names = list(cluster_guide.blocks())
    assert {"up", "serve", "scale", "stop"} <= set(names)
    assert [name for name in names if f'"{name}"' not in typed] == []


def test_a_reason_why_hosts_cannot_be_made_names_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "NEEDED", {"no-such-program": "a-package"})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert hosts.why_not() == "apt-get install a-package"
