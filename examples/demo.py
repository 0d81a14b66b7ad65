"""The main job on real input: `make demo`.

Trains two classifiers, serves, and sends every held-out prediction with its truth as Seldon's
executor does; a third of them in halves, the prediction as Seldon's logger sends it and the truth
by itself, in any order; some twice, as a broker does; the server restarts on the way. What it
answers is compared with scikit-learn's figures on the same rows. Exit status 0: all agreed.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families
from sklearn import metrics as sk
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize

PATIENCE = 20  # seconds that the server has to start, to answer, and to end
LATE = 3  # every so many rows the truth comes by itself
WINDOWS = ("all", "5m", "1h", "1d")
FEEDBACK = "io.seldon.serving.feedback"
PREDICTION = "io.seldon.serving.inference.response"
VIEW = "/v1/models/seldon/{}/default/classifier?window={}"
EVENTS = 'feedback_events_total{{deployment_name="{}",outcome="{}"}}'
LABELS = ("deployment_name", "outcome", "class", "truth", "prediction", "score", "window", "kind")
WORTH_A_LOOK = (
    'feedback_score{deployment_name="iris",score="accuracy",window="5m"}',
    'feedback_confusion_total{deployment_name="iris",truth="virginica",prediction="versicolor"}',
    'feedback_false_negatives_total{deployment_name="cancer",class="1"}',
    'seldon_metric_false_negative_total{deployment_name="cancer"}',
)
Event = tuple[dict[str, str], bytes]  # headers and body of a CloudEvent in binary mode


class Model(NamedTuple):
    """What a classifier says of rows it was not trained on."""

    name: str
    truth: Any
    probabilities: Any  # (N, K), or (N,) of the positive class
    class_names: Sequence[str]


def train(name: str, rows: Any, truth: Any, class_names: Sequence[str] = ()) -> Model:
    """A model trained on one half of the rows; with class names it is multiclass, else binary."""
    rows, held_out, labels, truth = train_test_split(rows, truth, test_size=0.5, random_state=1)
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    probabilities = classifier.predict_proba(held_out)
    return Model(name, truth, probabilities if class_names else probabilities[:, 1], class_names)


def feedback(model: Model) -> Iterator[Event]:
    """Each prediction with its truth, as Seldon's executor posts it; some of them in halves."""
    names = {"names": model.class_names} if model.class_names else {}
    for row, (truth, probabilities) in enumerate(
        zip(model.truth, model.probabilities, strict=True)
    ):
        answer = {"data": {**names, "ndarray": [probabilities.tolist()]}}
        known = {"truth": {"data": {"ndarray": [int(truth)]}}}
        request = uuid4().hex
        if row % LATE:
            yield event(model, FEEDBACK, request, {"response": answer, **known})
        else:
            yield event(model, PREDICTION, request, answer)
            yield event(model, FEEDBACK, request, known)


def event(model: Model, kind: str, request: str, data: Any) -> Event:
    """One event about a request to a model."""
    attributes = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": f"http://{model.name}-default.seldon:8000/",
        "type": kind,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "requestid": request,
        "modelid": "classifier",
        "inferenceservicename": model.name,
        "namespace": "seldon",
        "endpoint": "default",
        "protocol": "seldon",
        "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
    }
    headers = {f"ce-{name}": value for name, value in attributes.items()}
    headers["content-type"] = "application/json"
    return headers, json.dumps(data).encode()


def exact_scores(model: Model) -> dict[str, float]:
    """What scikit-learn says of the same rows."""
    truth, probabilities = model.truth, model.probabilities
    binary = not model.class_names
    predicted = probabilities >= 0.5 if binary else probabilities.argmax(axis=1)
    columns = truth if binary else label_binarize(truth, classes=range(len(model.class_names)))
    scores = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "matthews_corrcoef": sk.matthews_corrcoef(truth, predicted),
        "cohen_kappa": sk.cohen_kappa_score(truth, predicted),
        "log_loss": sk.log_loss(truth, probabilities),
        "brier_score": sk.brier_score_loss(truth, probabilities),
        "roc_auc_ovr": sk.roc_auc_score(columns, probabilities),
        "average_precision": sk.average_precision_score(columns, probabilities),
    }
    for average in ("macro", "micro", "weighted", "binary")[: 4 if binary else 3]:
        for name in ("precision", "recall", "f1", "jaccard"):
            score = getattr(sk, f"{name}_score")(truth, predicted, average=average)
            scores[name if average == "binary" else f"{name}_{average}"] = score
    return scores


# --- the server and its client --------------------------------------------------------------


class Client(threading.local):
    """A keep-alive connection for each thread that asks. Raises OSError for an answer but 2xx."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def get(self, path: str) -> str:
        """The text of a page."""
        return self._ask("GET", path)[1].decode()

    def deliver(self, event: Event) -> tuple[str, str]:
        """Post one event; its id, and the id of the metrics event in reply, if there is one."""
        headers, body = event
        return headers["ce-id"], self._ask("POST", "/", body, headers)[0]["ce-id"] or ""

    def _ask(self, *request: Any) -> tuple[Any, bytes]:
        self.connection.request(*request)
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status not in (200, 202):
            raise OSError(f"{request[0]} {request[1]}: {answer.status} {body[:300]!r}")
        return answer.headers, body


@contextmanager
def serving(store: str, log: Path) -> Iterator[Client]:
    """`python -m metrics serve` on a free loopback port; ended by SIGTERM, as from the kubelet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    not_ours = ("FEEDBACK_", "SELDON_", "PREDICT", "K_", "WEB_CONCURRENCY", "LOG_LEVEL")
    env = {name: text for name, text in os.environ.items() if not name.startswith(not_ours)}
    env |= {"FEEDBACK_STORE": store, "HOST": "127.0.0.1", "PORT": str(port)}
    env["FEEDBACK_JOIN_TTL"] = "1h"
    command = [sys.executable, "-m", "metrics", "serve"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        yield ready_client(process, port, log)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    if process.wait():
        raise OSError(f"SIGTERM ended the server with status {process.returncode}; see {log}")


def ready_client(process: subprocess.Popen[bytes], port: int, log: Path) -> Client:
    """A client of the server once it is ready. Raises OSError if it never is."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            client = Client(port)
            client.get("/health/readiness")
            return client
        time.sleep(0.05)
    raise OSError(f"the server did not become ready; {log} says:\n{log.read_text()[-2000:]}")


def send(client: Client, events: Sequence[Event]) -> set[tuple[str, str]]:
    """Deliver over several connections at once; the ids of the events and of their replies."""
    print(f"  {len(events)} calls ", end="", flush=True)
    replies = set()
    with ThreadPoolExecutor(8) as pool:
        for done, reply in enumerate(pool.map(client.deliver, events), 1):
            replies.add(reply)
            print("" if done % 10 else ".", end="", flush=True)
    print(" done")
    return replies


# --- what it answers ------------------------------------------------------------------------


def answers(client: Client, models: Sequence[Model]) -> dict[str, Any]:
    """Every view by its path, and the value of every series that must outlive the process."""
    paths = [VIEW.format(model.name, window) for model in models for window in WINDOWS]
    found = {path: json.loads(client.get(path)) for path in paths}
    for family in text_string_to_metric_families(client.get("/metrics")):
        for name, labels, value, *_ in family.samples:
            if family.type == "counter" or "deployment_name" in labels:
                shown = ",".join(f'{each}="{labels[each]}"' for each in LABELS if each in labels)
                found[f"{name}{{{shown}}}"] = value
    return found


def compare(view: Mapping[str, Any], exact: Mapping[str, float]) -> dict[str, tuple[str, bool]]:
    """Each score as a text beside the exact one, and whether they agree: equal but for rounding,
    or, where the view has bounds, within them."""
    compared = {}
    for name, right in exact.items():
        score = view["scores"].get(name, math.nan)
        low, high = view["bounds"].get(name, (score, score))
        text = f"{low:.5f}..{high:.5f}" if name in view["bounds"] else f"{score:.10f}"
        agrees = low - 1e-9 <= right <= high + 1e-9
        compared[name] = f"{text:>16} {right:.10f} {'agrees' if agrees else 'DIFFERS'}", agrees
    return compared


def report_counts(models: Sequence[Model], calls: Sequence[Event], found: dict[str, Any]) -> bool:
    """Print what became of the calls; whether each row counted once."""
    agreed = True
    for name, truth, *_ in models:
        ids = [head["ce-id"] for head, _ in calls if head["ce-inferenceservicename"] == name]
        called = len(ids)
        right = {"accepted": len(truth), "duplicate": called - len(set(ids)), "rejected": 0}
        counts = {outcome: found.get(EVENTS.format(name, outcome), math.nan) for outcome in right}
        text = ", ".join(f"{outcome} {count:g}" for outcome, count in counts.items())
        mark = "agrees" if counts == right else f"DIFFERS from {right}"
        print(f"  {name}: {called} calls about {len(truth)} rows: {text}: {mark}")
        agreed &= counts == right
    return agreed


def report_joins(models: Sequence[Model], found: dict[str, Any]) -> bool:
    """Print how predictions and truths met that came by themselves; whether all did."""
    agreed = True
    for name, truth, *_ in models:
        join = found[VIEW.format(name, "all")]["join"]
        first = join["truths"]["joined"]
        print(
            f"  {name}: {join['predictions']} predictions came without their truth, "
            f"{join['joined']} met it; {first} of these truths came first"
        )
        halves = -(-len(truth) // LATE)
        agreed &= join["predictions"] == join["joined"] == halves and join["waiting"] == 0
    return agreed


def report_scores(models: Sequence[Model], found: dict[str, Any]) -> bool:
    """Print the scores beside scikit-learn's; whether all agree."""
    columns = [compare(found[VIEW.format(each.name, "all")], exact_scores(each)) for each in models]
    heads = "".join(f"{model.name + ' answered':>17} {'scikit-learn':<20}" for model in models)
    print(f"\n{'score':<19}{heads}".rstrip())
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = "".join(f" {column.get(name, ('',))[0]:<37}" for column in columns)
        print(f"{name:<19}{cells}".rstrip())
    print("(a..b: certified bounds, which agree if scikit-learn's value lies within)")
    return all(agrees for column in columns for _, agrees in column.values())


def demo(directory: Path) -> bool:
    """All of it, told as it goes; whether all agreed."""
    iris, cancer = load_iris(), load_breast_cancer()
    models = [
        train("iris", iris.data, iris.target, iris.target_names.tolist()),
        train("cancer", cancer.data, 1 - cancer.target),  # positive: malignant
    ]
    events = [event for model in models for event in feedback(model)]
    random.Random(0).shuffle(events)
    rows = sum(len(model.truth) for model in models)
    print(f"Two classifiers, each trained on half of its data; {rows} rows are held out")
    # A broker's retries: every fifth at the same time as the first call; later some older ones.
    calls = [event for at, event in enumerate(events) for _ in range(1 if at % 5 else 2)]
    half = len(calls) // 2
    first, second = calls[:half], calls[1:half:7] + calls[half:]
    store, log = f"sqlite:///{directory}/feedback.db", directory / "server.log"
    print(f"Serving, with state in {store}")
    with serving(store, log) as client:
        replies = send(client, first)
        before = answers(client, models)
    print("SIGTERM, and a new process on the same store")
    with serving(store, log) as client:
        after = answers(client, models)
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        print(f"  {len(before)} views and series; changed: {', '.join(changed) or 'none'}")
        replies |= send(client, second)
        found = answers(client, models)
    replies = {(event, reply) for event, reply in replies if reply}  # a half waits without one
    one_each = len(replies) == len(dict(replies))
    print(f"  replies to copies of one event {'agree' if one_each else 'DIFFER'}")
    agreed = [
        report_counts(models, first + second, found),
        report_joins(models, found),
        report_scores(models, found),
    ]
    print("\nFrom /metrics, without the labels that are the same in all:")
    for series in WORTH_A_LOOK:
        print(f"  {series} {found.get(series, math.nan):g}")
    return all(agreed) and one_each and not changed


def main() -> int:
    """Exit status 0 if all agreed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`
    os.chdir(Path(__file__).resolve().parent.parent)
    directory = Path("state", "demo", uuid4().hex[:8])
    directory.mkdir(parents=True)
    try:
        agreed = demo(directory)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"\ndemo: {error}")
    print(f"""
{"All agreed." if agreed else "NOT ALL AGREED."} State stays in {directory}; to look further:
  FEEDBACK_STORE=sqlite:///{directory}/feedback.db make run
  curl -s localhost:8080/v1/models/seldon/iris/default/classifier
  curl -s localhost:8080/metrics
and http://localhost:8080/ in a browser.""")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
