"""The main job on real input: `make demo`.

Trains two classifiers, serves, and sends every held-out prediction with its truth as Seldon's
executor does. Some deliveries come twice, as from a broker, and the server restarts on the way.
Whatever it answers is compared with scikit-learn on the same rows; exit status 0: all agreed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from uuid import uuid4

import sklearn
from prometheus_client.parser import text_string_to_metric_families
from sklearn import metrics as sk
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 8
TOLERANCE = 1e-9
WINDOWS = ("all", "5m", "1h", "1d")
START_SECONDS = STOP_SECONDS = 30


class DemoError(Exception):
    """Raised when the demo cannot go on."""


# --- models and their feedback --------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A trained classifier's held-out rows: (N, K) probabilities, or (N,) of the positive class."""

    name: str
    truth: Any
    probabilities: Any
    class_names: Sequence[str] = ()

    @property
    def id(self) -> str:
        """What the function calls it."""
        return f"seldon/{self.name}/default/classifier"

    def events(self) -> list[Event]:
        """One feedback event for each row."""
        return [Event.of(self, row) for row in range(len(self.truth))]


def train() -> list[Model]:
    """Train on one half of each data set, and predict the other."""
    models = []
    for name, load in (("iris", load_iris), ("cancer", load_breast_cancer)):
        data = load()
        truth = data.target if name == "iris" else 1 - data.target  # positive: malignant
        train_x, test_x, train_y, test_y = train_test_split(
            data.data, truth, test_size=0.5, random_state=0, stratify=truth
        )
        classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(train_x, train_y)
        probabilities = classifier.predict_proba(test_x)
        if name == "iris":
            models.append(Model(name, test_y, probabilities, data.target_names.tolist()))
        else:
            models.append(Model(name, test_y, probabilities[:, 1]))
    return models


@dataclass(frozen=True)
class Event:
    """One feedback call as Seldon's executor posts it: a CloudEvent in binary mode."""

    model: str
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, model: Model, row: int) -> Event:
        """The feedback on one held-out row."""
        prediction: dict[str, Any] = {"ndarray": model.probabilities[row : row + 1].tolist()}
        if model.class_names:
            prediction["names"] = model.class_names
        truth = {"ndarray": [int(model.truth[row])]}
        attributes = {
            "specversion": "1.0",
            "id": str(uuid4()),
            "source": f"http://{model.name}-default.seldon:8000/",
            "type": "io.seldon.serving.feedback",
            "time": datetime.now(timezone.utc).isoformat(),
            "requestid": uuid4().hex,
            "modelid": "classifier",
            "inferenceservicename": model.name,
            "namespace": "seldon",
            "endpoint": "default",
            "protocol": "seldon",
            "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
        }
        headers = {f"ce-{name}": value for name, value in attributes.items()}
        body = {"response": {"data": prediction}, "truth": {"data": truth}}
        return cls(
            model.id, {"content-type": "application/json", **headers}, json.dumps(body).encode()
        )


def exact_scores(model: Model) -> dict[str, float]:
    """What scikit-learn says of the same rows."""
    truth, probabilities = model.truth, model.probabilities
    binary = probabilities.ndim == 1
    predicted = (probabilities >= 0.5).astype(int) if binary else probabilities.argmax(axis=1)
    calls = {
        "precision": sk.precision_score,
        "recall": sk.recall_score,
        "f1": sk.f1_score,
        "jaccard": sk.jaccard_score,
    }
    scores = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "matthews_corrcoef": sk.matthews_corrcoef(truth, predicted),
        "cohen_kappa": sk.cohen_kappa_score(truth, predicted),
        "log_loss": sk.log_loss(truth, probabilities),
        "brier_score": sk.brier_score_loss(truth, probabilities),
    }
    for average in ("macro", "micro", "weighted"):
        for name, call in calls.items():
            scores[f"{name}_{average}"] = call(truth, predicted, average=average)
    if binary:
        scores.update((name, call(truth, predicted)) for name, call in calls.items())
        scores["specificity"] = sk.recall_score(truth, predicted, pos_label=0)
        scores["roc_auc_ovr"] = sk.roc_auc_score(truth, probabilities)
        scores["average_precision"] = sk.average_precision_score(truth, probabilities)
    else:
        one_hot = label_binarize(truth, classes=range(probabilities.shape[1]))
        scores["roc_auc_ovr"] = sk.roc_auc_score(truth, probabilities, multi_class="ovr")
        scores["roc_auc_ovr_weighted"] = sk.roc_auc_score(
            truth, probabilities, multi_class="ovr", average="weighted"
        )
        scores["average_precision"] = sk.average_precision_score(one_hot, probabilities)
    return {name: float(score) for name, score in scores.items()}


# --- the server and its client --------------------------------------------------------------


class Server:
    """`python -m metrics serve` on a free loopback port; its log goes to a file."""

    def __init__(self, store: str, log: Path) -> None:
        self._log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        ours = ("FEEDBACK_", "SELDON_", "PREDICT", "K_")  # settings that are about another server
        environ = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
        environ |= {"HOST": "127.0.0.1", "PORT": str(self.port), "WEB_CONCURRENCY": "1"}
        environ |= {"FEEDBACK_STORE": store, "LOG_LEVEL": "INFO"}
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metrics", "serve"],
                cwd=ROOT,
                env=environ,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def __enter__(self) -> Client:
        """Wait until it is ready. Raises DemoError with the end of its log if it never is."""
        deadline = time.monotonic() + START_SECONDS
        try:
            while self.process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError, http.client.HTTPException):
                    client = Client(self.port)
                    if client.ask("GET", "/health/readiness")[0].status == 200:
                        return client
                time.sleep(0.05)
            status = self.process.poll()
            ended = f"not ready in {START_SECONDS} s" if status is None else f"exit status {status}"
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])
            raise DemoError(f"the server did not start ({ended}); {self._log} ends:\n{end}")
        except BaseException as error:
            self.__exit__(error)
            raise

    def __exit__(self, error: object = None, *_: object) -> None:
        """SIGTERM, as the kubelet sends it; SIGKILL only if that is not enough."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):  # what is left of its session, which is its own
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        if status and not error:
            raise DemoError(f"SIGTERM ended the server with exit status {status}; see {self._log}")


class Client(threading.local):
    """A keep-alive connection for each thread that asks."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """The answer to one request, whatever its status."""
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        return answer, answer.read()

    def get(self, path: str) -> str:
        """The text of a page."""
        answer, body = self.ask("GET", path)
        if answer.status != 200:
            raise DemoError(f"GET {path}: {answer.status} {body[:300]!r}")
        return body.decode()

    def deliver(self, event: Event) -> tuple[str, str]:
        """Post one event; its id, and that of the metrics event in reply."""
        answer, body = self.ask("POST", "/", event.body, event.headers)
        if answer.status != 200 or answer.headers["ce-subject"] != event.model:
            raise DemoError(f"POST /: {answer.status} {body[:300]!r}")
        return event.headers["ce-id"], answer.headers["ce-id"]


def send(client: Client, deliveries: Sequence[Event], replies: dict[str, set[str]]) -> None:
    """Deliver over several connections at once; adds the ids of the replies to each event's."""
    print(f"  {len(deliveries)} deliveries ", end="", flush=True)
    start = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done, (event, reply) in enumerate(pool.map(client.deliver, deliveries), 1):
            replies.setdefault(event, set()).add(reply)
            if done % 10 == 0:
                print(".", end="", flush=True)
    print(f" {time.monotonic() - start:.2f} s")


def some_twice(events: Sequence[Event]) -> list[Event]:
    """Every fifth event twice in a row: a retry while the first call still runs."""
    return list(
        chain.from_iterable(
            [event] * (1 + (number % 5 == 0)) for number, event in enumerate(events)
        )
    )


# --- what it answers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One answered score beside the exact one."""

    score: str
    answered: str
    exact: float
    mark: str

    @property
    def agrees(self) -> bool:
        """Whether the answer is right."""
        return self.mark != "DIFFERS"

    def __str__(self) -> str:
        return f"{self.answered:>16} {self.exact:>12.10f} {self.mark:<7}"


def compare(view: Mapping[str, Any], exact: Mapping[str, float]) -> list[Comparison]:
    """Each exact score against the view's: the same but for rounding, or within its bounds."""
    comparisons = []
    for name, right in exact.items():
        answered = view["scores"].get(name)
        if answered is None:
            comparisons.append(Comparison(name, "absent", right, "DIFFERS"))
        elif name in view["bounds"]:
            low, high = view["bounds"][name]
            inside = low - TOLERANCE <= right <= high + TOLERANCE
            mark = "within" if inside else "DIFFERS"
            comparisons.append(Comparison(name, f"{low:.5f}..{high:.5f}", right, mark))
        else:
            mark = "equal" if abs(answered - right) <= TOLERANCE else "DIFFERS"
            comparisons.append(Comparison(name, f"{answered:.10f}", right, mark))
    return comparisons


def views_of(client: Client, models: Sequence[Model]) -> dict[str, Any]:
    """Every model's view in every window."""
    paths = [f"/v1/models/{model.id}?window={window}" for model in models for window in WINDOWS]
    return {path: json.loads(client.get(path)) for path in paths}


Series = tuple[str, frozenset[tuple[str, str]]]


def series_of(client: Client, *kinds: str) -> dict[Series, float]:
    """The value of each series of /metrics whose family is of one of these types."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics"))
        for sample in family.samples
        if family.type in kinds
    }


def unchanged(what: str, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> bool:
    """Print how many values of `before` are the same in `after`; whether all are."""
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    print(f"  {what}: {len(before) - len(changed)} of {len(before)} are the same")
    for key in changed:
        print(f"    CHANGED {key}: {before.get(key)} -> {after.get(key)}")
    return bool(before) and not changed


# --- the demo -------------------------------------------------------------------------------

WORTH_A_LOOK = {
    "feedback_events_total": {},
    "feedback_confusion_total": {"truth": "versicolor"},
    "feedback_score": {"score": "accuracy", "deployment_name": "iris"},
    "feedback_log_loss_total": {},
    "seldon_metric_false_negative_total": {"deployment_name": "cancer"},
}
SHOWN_LABELS = ("deployment_name", "outcome", "truth", "prediction", "score", "window", "class")


def report_scores(client: Client, models: Sequence[Model]) -> bool:
    """Print each score beside scikit-learn's; whether all agree."""
    views = [json.loads(client.get(f"/v1/models/{model.id}")) for model in models]
    columns = [
        {each.score: each for each in compare(view, exact_scores(model))}
        for model, view in zip(models, views, strict=True)
    ]
    heads = "".join(f" {model.name + ' answers':>16} {'scikit-learn':<21}" for model in models)
    print(f"  {'score':<21}{heads}".rstrip())
    for score in dict.fromkeys(chain.from_iterable(columns)):
        cells = "".join(f" {column.get(score, '')!s:<38}" for column in columns)
        print(f"  {score:<21}{cells}".rstrip())
    others = dict.fromkeys(chain.from_iterable(view["scores"] for view in views))
    others = [name for name in others if not any(name in column for column in columns)]
    print(f"  Not in scikit-learn: {', '.join(others)}")
    for model, view in zip(models, views, strict=True):
        low, high = view["intervals"]["accuracy"]
        print(f"  {model.name}: accuracy is {low:.3f} to {high:.3f} at 95 % confidence")
    return all(each.agrees for column in columns for each in column.values())


def report_counts(
    models: Sequence[Model], deliveries: Sequence[Event], series: Mapping[Series, float]
) -> bool:
    """Print what was sent and what was counted; whether each event counted once."""
    print(f"  {'model':<8}{'rows':>6}{'deliveries':>12}{'counted':>9}{'duplicates dropped':>20}")
    sent = Counter(event.model for event in deliveries)
    agreed = True
    for model in models:
        counted = {
            dict(labels)["outcome"]: int(value)
            for (name, labels), value in series.items()
            if name == "feedback_events_total" and ("deployment_name", model.name) in labels
        }
        rows, accepted, duplicate = len(model.truth), counted["accepted"], counted["duplicate"]
        right = accepted == rows and duplicate == sent[model.id] - rows
        mark = "equal" if right and not counted["rejected"] else "DIFFERS"
        print(f"  {model.name:<8}{rows:>6}{sent[model.id]:>12}{accepted:>9}{duplicate:>20} {mark}")
        agreed &= mark == "equal"
    return agreed
