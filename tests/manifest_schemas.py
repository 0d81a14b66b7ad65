"""Would a cluster, or func, refuse it? Published schemas, read strictly: no field too many.

kubernetes-validate has the schemas of Kubernetes' kinds; cloudcoil's models are made from the
CRDs of Knative and of Prometheus's operator, and pydantic can forbid them what they do not name.
func.yaml and SeldonDeployment are in no package: their fields are listed here, by hand.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import kubernetes_validate
from pydantic import ValidationError

Manifest = dict[str, Any]

KUBERNETES = "1.37"
MODELS = {
    "serving.knative.dev/v1": "cloudcoil.models.knative_serving.serving.v1",
    "eventing.knative.dev/v1": "cloudcoil.models.knative_eventing.eventing.v1",
    "eventing.knative.dev/v1beta3": "cloudcoil.models.knative_eventing.eventing.v1beta3",
    "sources.knative.dev/v1": "cloudcoil.models.knative_eventing.sources.v1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
FLAGGED_DELIVERY = {"timeout", "format", "retryAfterMax"}
"""Fields of a delivery behind feature flags: the CRDs let them pass without naming them."""
REVISION_ONLY = {"containerConcurrency", "timeoutSeconds", "idleTimeoutSeconds"}
"""Fields of a revision's spec that a pod's does not have."""

ANY = "*"
RESOURCES = {"cpu": str, "memory": str}
NAMED_VALUES = [{"name": str, "value": str}]
FUNC_YAML = {  # knative/func, schema/func_yaml-schema.json, as of specVersion 0.36.0
    "specVersion": str,
    "name": str,
    "domain": str,
    "runtime": str,
    "registry": str,
    "image": str,
    "namespace": str,
    "created": datetime,
    "invoke": {"http", "cloudevent"},
    "build": {
        "git": {"url": str, "revision": str, "contextDir": str},
        "builderImages": {ANY: str},
        "buildpacks": [str],
        "builder": {"pack", "s2i"},
        "buildEnvs": NAMED_VALUES,
        "pvcSize": str,
        "remoteStorageClass": str,
    },
    "run": {
        "volumes": [
            {
                "secret": str,
                "configMap": str,
                "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
                "emptyDir": {"medium": str, "sizeLimit": str},
                "path": str,
            }
        ],
        "envs": NAMED_VALUES,
        "startTimeout": int,
    },
    "deploy": {
        "namespace": str,
        "image": str,
        "annotations": {ANY: str},
        "options": {
            "scale": {
                "min": int,
                "max": int,
                "metric": {"concurrency", "rps"},
                "target": (int, float),
                "utilization": (int, float),
            },
            "resources": {"requests": RESOURCES, "limits": {**RESOURCES, "concurrency": int}},
        },
        "labels": [{"key": str, "value": str}],
        "healthEndpoints": {"liveness": str, "readiness": str},
        "serviceAccountName": str,
        "subscriptions": [{"source": str, "filters": {ANY: str}}],
    },
}

UNIT: dict[str, Any] = {
    "name": str,
    "type": str,
    "implementation": str,
    "methods": [str],
    "endpoint": {"service_host": str, "service_port": int, "type": str},
    "parameters": [{"name": str, "value": str, "type": str}],
    "modelUri": str,
    "serviceAccountName": str,
    "envSecretRefName": str,
    "logger": {"url": str, "mode": {"all", "request", "response"}},
}
UNIT["children"] = [UNIT]
SELDON_DEPLOYMENT = {  # SeldonIO/seldon-core, seldondeployment_types.go; no package has its schema
    "apiVersion": {"machinelearning.seldon.io/v1"},
    "kind": {"SeldonDeployment"},
    "metadata": {"name": str, "namespace": str, "labels": {ANY: str}, "annotations": {ANY: str}},
    "spec": {
        "name": str,
        "protocol": str,
        "transport": str,
        "replicas": int,
        "annotations": {ANY: str},
        "predictors": [
            {
                "name": str,
                "graph": UNIT,
                "replicas": int,
                "annotations": {ANY: str},
                "labels": {ANY: str},
                "traffic": int,
            }
        ],
    },
}


def faults(value: Any, shape: Any, at: str = "") -> Iterator[str]:
    """What `value` has that `shape` does not name, or names otherwise.

    A shape is a mapping of shapes (ANY stands for every name), a list of one shape, a set of
    allowed values, or a type.
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        for name, inner in value.items():
            if name in shape or ANY in shape:
                yield from faults(inner, shape.get(name, shape.get(ANY)), f"{at}.{name}")
            else:
                yield f"{at}.{name} is unknown"
    elif isinstance(shape, list) and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from faults(inner, shape[0], f"{at}[{number}]")
    elif isinstance(shape, set):
        if value not in shape:
            yield f"{at} is {value!r}, not one of {sorted(shape)}"
    elif isinstance(shape, (dict, list)) or not isinstance(value, shape):
        yield f"{at} is {value!r}"


def refusals(manifest: Manifest) -> str:
    """Why a cluster would refuse a manifest; empty if it would not."""
    group = manifest["apiVersion"]
    try:
        if manifest["kind"] == "SeldonDeployment":
            return "\n".join(faults(manifest, SELDON_DEPLOYMENT))
        if group in MODELS:
            _model(group, manifest["kind"]).model_validate(_unflagged(manifest), extra="forbid")
            if group == "serving.knative.dev/v1":
                kubernetes_validate.validate(_as_pod(manifest), KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except (ValidationError, kubernetes_validate.ValidationError) as error:
        return str(error)
    return ""


def _model(group: str, kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generated models shadow names of their base class
        return getattr(importlib.import_module(MODELS[group]), kind)


def _unflagged(manifest: Manifest) -> Manifest:
    manifest = copy.deepcopy(manifest)
    delivery = manifest.get("spec", {}).get("delivery", {})
    for name in FLAGGED_DELIVERY & delivery.keys():
        del delivery[name]
    return manifest


def _as_pod(service: Manifest) -> Manifest:
    """The pod of a Knative Service: Knative's schema leaves some volumes and contexts open."""
    template = copy.deepcopy(service["spec"]["template"])
    spec = {name: each for name, each in template["spec"].items() if name not in REVISION_ONLY}
    for container in spec["containers"]:
        for probe in ("livenessProbe", "readinessProbe"):  # whose port Knative fills in
            container.get(probe, {}).get("httpGet", {}).setdefault("port", 8080)
    metadata = {**template.get("metadata", {}), "name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
