"""The RayJob manifest, against the fields that KubeRay's reference (ray.io/v1, release 1.7) and Kubernetes document."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from typing import Any

import yaml

from tests.conftest import REPOSITORY

Json = dict[str, Any]

# https://docs.ray.io/en/master/cluster/kubernetes/references/api.html: each field and its type.
RAY_JOB = {
    **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "preRunningDeadlineSeconds"), int),
    **dict.fromkeys(("entrypoint", "entrypointResources", "jobId", "managedBy", "runtimeEnvYAML"), str),
    **dict.fromkeys(("entrypointNumCpus", "entrypointNumGpus"), (int, float)),
    **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), bool),
    **dict.fromkeys(("clusterSelector", "deletionStrategy", "metadata", "rayClusterSpec", "submitterConfig"), dict),
    "submissionMode": str,
    "submitterPodTemplate": dict,
    "ttlSecondsAfterFinished": int,
}
RAY_CLUSTER = {
    **dict.fromkeys(("authOptions", "autoscalerOptions", "gcsFaultToleranceOptions", "headGroupSpec"), dict),
    **dict.fromkeys(("headServiceAnnotations", "historyServerOptions", "networkPolicy", "tlsOptions"), dict),
    **dict.fromkeys(("enableInTreeAutoscaling", "suspend"), bool),
    **dict.fromkeys(("managedBy", "rayVersion"), str),
    "upgradeStrategy": dict,
    "workerGroupSpecs": list,
}
AUTH = {"enableK8sTokenAuth": bool, "mode": str, "secretName": str}
HEAD_GROUP = {
    **dict.fromkeys(("headService", "ingressOptions", "labels", "rayStartParams", "resources", "template"), dict),
    "enableIngress": bool,
    "serviceType": str,
}
WORKER_GROUP = {
    **dict.fromkeys(("idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "priority", "replicas"), int),
    **dict.fromkeys(("labels", "rayStartParams", "resources", "scaleStrategy", "template"), dict),
    "groupName": str,
    "suspend": bool,
}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}

# https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
POD = {
    **dict.fromkeys(("containers", "imagePullSecrets", "initContainers", "tolerations", "volumes"), list),
    **dict.fromkeys(("affinity", "nodeSelector", "securityContext"), dict),
    **dict.fromkeys(("priorityClassName", "restartPolicy", "serviceAccountName"), str),
    "terminationGracePeriodSeconds": int,
}
CONTAINER = {
    **dict.fromkeys(("args", "command", "env", "envFrom", "ports", "volumeMounts"), list),
    **dict.fromkeys(("image", "imagePullPolicy", "name", "workingDir"), str),
    **dict.fromkeys(("lifecycle", "livenessProbe", "readinessProbe", "resources", "securityContext"), dict),
}


def manifest() -> Json:
    (job,) = yaml.safe_load_all((REPOSITORY / "cluster/kuberay/rayjob.yaml").read_text())
    assert isinstance(job, dict)
    return job


def check(given: Json, fields: dict[str, Any], where: str) -> None:
    for name, value in given.items():
        assert name in fields, f"{where}.{name}: there is no such field"
        assert isinstance(value, fields[name]), f"{where}.{name}: {value!r}"
        assert fields[name] is bool or not isinstance(value, bool), f"{where}.{name}: {value!r}"


def groups(job: Json) -> list[Json]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_every_field_is_documented() -> None:
    job = manifest()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    cluster = job["spec"]["rayClusterSpec"]
    check(job["spec"], RAY_JOB, "spec")
    check(cluster, RAY_CLUSTER, "rayClusterSpec")
    check(cluster["authOptions"], AUTH, "authOptions")
    check(cluster["headGroupSpec"], HEAD_GROUP, "headGroupSpec")
    for group in cluster["workerGroupSpecs"]:
        check(group, WORKER_GROUP, "workerGroupSpecs")
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert job["spec"]["submissionMode"] in SUBMISSION_MODES


def test_pods_have_the_shape_of_pods() -> None:
    for group in groups(manifest()):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert set(group["template"]) <= {"metadata", "spec"}
        pod = group["template"]["spec"]
        check(pod, POD, "pod")
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            check(container, CONTAINER, "container")
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert all(isinstance(value, str) for value in container["resources"]["limits"].values())
            assert all(set(variable) == {"name", "value"} for variable in container["env"])


def test_it_is_protected_shared_and_goes_on() -> None:
    job = manifest()
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "tissuegrid-token"}
    assert cluster["rayVersion"] == version("ray")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["entrypointNumGpus"] == 0
    head, workers = groups(job)
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" in workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    for group in (head, workers):
        container = group["template"]["spec"]["containers"][0]
        assert container["workingDir"].startswith(container["volumeMounts"][0]["mountPath"])


def test_its_command_is_one_of_ours() -> None:
    from trainer.config import load_config

    words = shlex.split(manifest()["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "trainer", "train"]
    config = load_config(REPOSITORY / words[4], words[5:])
    assert (config.scale.gpu, config.scale.workers, config.loop.precision) == (True, "1:2", "bf16")
