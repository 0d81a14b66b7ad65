"""What scores cost: to read them, by number of classes, and to count an event, beside others.

    python -m benchmarks.scores

CPU time of this process, the least of several runs: that holds while a machine is noisy. River is
measured where it is installed (`pip install river`); torchmetrics' way of updating is written out
in numpy here, and scikit-learn computes anew over the last thousand rows.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import orjson
from sklearn import metrics as sk

from metrics.counters import Vector, add
from metrics.evaluators import Known, evaluate
from metrics.exact import to_units
from metrics.model_settings import ModelSettings
from metrics.payload import decode
from metrics.scores import model_view, score_vector
from metrics.scores.view import naming
from metrics.state import Gauge, ModelState
from metrics.windows import ALL_TIME

try:
    from river import metrics as river
except ImportError:
    river = None

MODEL = "namespace/deployment/predictor/model"
RECENT = 1000
"""Rows over which scikit-learn computes anew."""


def microseconds(call: Callable[[], Any], runs: int = 30) -> float:
    """CPU time of one call, the least of `runs`."""
    best = float("inf")
    for _ in range(runs):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return best * 1e6


# --- reading --------------------------------------------------------------------------------


def model(classes: int, confusions: int, bins: int) -> ModelState:
    """A model with that many cells off the diagonal, and bins used by each class's scores."""
    rng = np.random.default_rng(0)
    places = rng.permutation(classes * (classes - 1))[:confusions]
    pairs = [(int(place) // (classes - 1), int(place) % (classes - 1)) for place in places]
    vector: Vector = {
        "true_positives": {(str(column),): int(rng.integers(1, 1000)) for column in range(classes)}
    }
    for truth, other in pairs:
        prediction, number = str(other + (other >= truth)), int(rng.integers(1, 20))
        add(
            vector,
            {
                "false_negatives": {(str(truth),): number},
                "false_positives": {(prediction,): number},
                "confusion": {(str(truth), prediction): number},
            },
        )
    rows = sum(vector["true_positives"].values()) + sum(vector["false_negatives"].values())
    add(vector, {"rows": {(): rows}, "events": {(): rows}})
    if bins:
        scored = [1] if classes == 2 else range(classes)
        add(
            vector,
            {
                "probability_rows": {(): rows},
                "log_loss": {(): to_units(0.3 * rows)},
                "log_loss_squared": {(): to_units(0.2 * rows)},
                "brier": {(): to_units(0.2 * rows)},
                "brier_squared": {(): to_units(0.1 * rows)},
                "calibration_rows": {(str(bin),): rows // 15 for bin in range(15)},
                "calibration_hits": {(str(bin),): rows // 30 for bin in range(15)},
                "calibration_confidence": {(str(bin),): to_units(rows / 30) for bin in range(15)},
                "scores": {
                    (str(column), str(bin - bins // 2), side): int(rng.integers(1, 50))
                    for column in scored
                    for bin in range(bins)
                    for side in "01"
                },
            },
        )
    columns = {("columns", ()): Gauge(classes, 0.0)}
    return ModelState({ALL_TIME: vector}, columns, {"task": "multiclass"})


def print_read_costs() -> None:
    """One line for each size of model."""
    print("Reading all scores of a model (µs of CPU)\n")
    print("classes  confusions  score cells  score_vector  model_view")
    settings = ModelSettings()
    for classes, confusions, bins in (
        (2, 2, 0),
        (2, 2, 600),
        (10, 20, 0),
        (10, 90, 0),
        (10, 90, 100),
        (10, 90, 600),
        (64, 4032, 100),
        (100, 500, 0),
        (100, 9900, 0),
        (1000, 3000, 0),
        (1000, 60_000, 0),
    ):
        state = model(classes, confusions, bins)
        vector, names = state.all_time, naming(state, settings)
        scores = microseconds(lambda v=vector, n=names: score_vector(v, "multiclass", settings, n))
        view = microseconds(lambda s=state: model_view(MODEL, s, settings, 0.0))
        cells = len(vector.get("scores", {}))
        print(f"{classes:7}  {confusions:10}  {cells:11}  {scores:12.0f}  {view:10.0f}")


# --- counting -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The rows of one event: truths, and probabilities or predicted values."""

    truth: Any
    prediction: Any


Update = Callable[[Batch], Any]


class Task(NamedTuple):
    """A task, and how each library counts an event of it."""

    name: str
    settings: ModelSettings
    draw: Callable[[Any, int], Batch]
    others: dict[str, Callable[[], Update]]


def _drawn(classes: int) -> Callable[[Any, int], Batch]:
    def draw(rng: Any, rows: int) -> Batch:
        return Batch(rng.integers(0, classes, rows), rng.dirichlet(np.ones(classes), rows))

    return draw


def _labels(rng: Any, rows: int) -> Batch:
    return Batch(rng.integers(0, 10, rows), rng.integers(0, 10, rows))


def _numbers(rng: Any, rows: int) -> Batch:
    truth = rng.normal(100, 1, rows)
    return Batch(truth, truth + rng.normal(0, 0.3, rows))


def _traits(rng: Any, rows: int) -> Batch:
    return Batch(rng.integers(0, 2, (rows, 5)), rng.integers(0, 2, (rows, 5)))


def _numpy_classifier(classes: int) -> Update:
    """As torchmetrics updates: a confusion matrix, sums, and 200 thresholds of each class."""
    confusion = np.zeros((classes, classes), np.int64)
    thresholds = np.linspace(0, 1, 200)
    above = np.zeros((200, classes, 2), np.int64)
    sums = np.zeros(2)

    def update(batch: Batch) -> None:
        truth, p = batch
        if p.ndim == 1:
            np.add.at(confusion, (truth, p), 1)
            return
        np.add.at(confusion, (truth, p.argmax(axis=1)), 1)
        sums[0] -= np.log(p[np.arange(len(p)), truth].clip(1e-16)).sum()
        sums[1] += ((p - np.eye(classes)[truth]) ** 2).sum()
        hits = p[None] >= thresholds[:, None, None]
        for side in (0, 1):
            above[:, :, side] += (hits & ((np.eye(classes)[truth] == side)[None])).sum(axis=1)

    return update


def _numpy_regressor() -> Update:
    sums = np.zeros(6)

    def update(batch: Batch) -> None:
        error = batch.prediction - batch.truth
        sums[:] += (
            *(len(error), np.abs(error).sum(), (error**2).sum(), error.sum()),
            *(batch.truth.sum(), (batch.truth**2).sum()),
        )

    return update


def _numpy_traits() -> Update:
    counts = np.zeros((5, 4), np.int64)

    def update(batch: Batch) -> None:
        for place, (true, predicted) in enumerate(((1, 1), (0, 1), (1, 0), (0, 0))):
            counts[:, place] += ((batch.truth == true) & (batch.prediction == predicted)).sum(
                axis=0
            )

    return update


def _recomputed(measures: Callable[[Any, Any], Any]) -> Callable[[], Update]:
    """Compute `measures` anew over the last rows at every event."""

    def start() -> Update:
        truths: deque[Any] = deque(maxlen=RECENT)
        predictions: deque[Any] = deque(maxlen=RECENT)

        def update(batch: Batch) -> None:
            truths.extend(batch.truth)
            predictions.extend(batch.prediction)
            if len(truths) > 1:
                measures(np.array(truths), np.array(predictions))

        return update

    return start


def _sk_probabilities(truth: Any, p: Any) -> None:
    _sk_labels(truth, p.argmax(axis=1))
    sk.log_loss(truth, p, labels=range(p.shape[1]))
    for column in range(p.shape[1]) if p.shape[1] > 2 else [1]:
        sk.roc_auc_score(truth == column, p[:, column])


def _sk_labels(truth: Any, prediction: Any) -> None:
    sk.accuracy_score(truth, prediction)
    sk.precision_recall_fscore_support(truth, prediction, average="macro", zero_division=0)
    sk.matthews_corrcoef(truth, prediction)
    sk.cohen_kappa_score(truth, prediction)


def _sk_numbers(truth: Any, prediction: Any) -> None:
    sk.mean_absolute_error(truth, prediction)
    sk.mean_squared_error(truth, prediction)
    sk.r2_score(truth, prediction)
    sk.median_absolute_error(truth, prediction)


def _sk_traits(truth: Any, prediction: Any) -> None:
    sk.precision_recall_fscore_support(truth, prediction, average="macro", zero_division=0)
    sk.hamming_loss(truth, prediction)
    sk.accuracy_score(truth, prediction)


def _river_classifier() -> Update:
    shared = river.ConfusionMatrix()
    kinds = (
        *(river.Accuracy, river.BalancedAccuracy, river.MacroPrecision, river.MacroRecall),
        *(river.MacroF1, river.WeightedF1, river.MCC, river.CohenKappa),
    )
    scores = [kind(cm=shared) for kind in kinds]
    loss = river.CrossEntropy()

    def update(batch: Batch) -> None:
        labels = batch.prediction.ndim == 1
        for truth, predicted in zip(batch.truth.tolist(), batch.prediction.tolist(), strict=True):
            shared.update(truth, predicted if labels else predicted.index(max(predicted)))
            if not labels:
                loss.update(truth, dict(enumerate(predicted)))
        for score in scores:
            score.get()

    return update


def _river_binary() -> Update:
    classifier, auc, loss = _river_classifier(), river.ROCAUC(), river.LogLoss()

    def update(batch: Batch) -> None:
        classifier(Batch(batch.truth, batch.prediction.argmax(axis=1)))
        for truth, p in zip(batch.truth.tolist(), batch.prediction[:, 1].tolist(), strict=True):
            auc.update(bool(truth), p)
            loss.update(bool(truth), p)
        auc.get()

    return update


def _river_regressor() -> Update:
    scores = [kind() for kind in (river.MAE, river.MSE, river.RMSE, river.R2, river.MAPE)]

    def update(batch: Batch) -> None:
        for truth, predicted in zip(batch.truth.tolist(), batch.prediction.tolist(), strict=True):
            for score in scores:
                score.update(truth, predicted)
        for score in scores:
            score.get()

    return update


def _river_traits() -> Update:
    scores = [
        river.multioutput.MacroAverage(river.F1()),
        river.multioutput.MicroAverage(river.F1()),
        river.multioutput.ExactMatch(),
    ]

    def update(batch: Batch) -> None:
        for truth, predicted in zip(batch.truth.tolist(), batch.prediction.tolist(), strict=True):
            sides = [dict(enumerate(map(bool, side))) for side in (truth, predicted)]
            for score in scores:
                score.update(*sides)
        for score in scores:
            score.get()

    return update


TASKS = (
    Task(
        "10 classes, probabilities",
        ModelSettings(task="multiclass"),
        _drawn(10),
        {
            "river": _river_classifier,
            "numpy": lambda: _numpy_classifier(10),
            "scikit-learn": _recomputed(_sk_probabilities),
        },
    ),
    Task(
        "10 classes, labels",
        ModelSettings(task="multiclass"),
        _labels,
        {
            "river": _river_classifier,
            "numpy": lambda: _numpy_classifier(10),
            "scikit-learn": _recomputed(_sk_labels),
        },
    ),
    Task(
        "binary, probabilities",
        ModelSettings(task="binary"),
        _drawn(2),
        {
            "river": _river_binary,
            "numpy": lambda: _numpy_classifier(2),
            "scikit-learn": _recomputed(_sk_probabilities),
        },
    ),
    Task(
        "regression",
        ModelSettings(task="regression"),
        _numbers,
        {
            "river": _river_regressor,
            "numpy": _numpy_regressor,
            "scikit-learn": _recomputed(_sk_numbers),
        },
    ),
    Task(
        "multilabel, 5 labels",
        ModelSettings(task="multilabel"),
        _traits,
        {
            "river": _river_traits,
            "numpy": _numpy_traits,
            "scikit-learn": _recomputed(_sk_traits),
        },
    ),
)


def body(batch: Batch) -> bytes:
    """The event that says `batch`."""
    return orjson.dumps(
        {
            "truth": {"data": {"ndarray": batch.truth.tolist()}},
            "response": {"data": {"ndarray": batch.prediction.tolist()}},
        }
    )


def _ours(settings: ModelSettings) -> Callable[[bytes], Any]:
    """Decode an event, evaluate it, and add it to the model's counters."""
    known = Known()
    counters: dict[str, Any] = {}

    def update(text: bytes) -> None:
        evaluation = evaluate(decode(text), settings, known)
        known.constants = {**evaluation.constants, **known.constants}
        add(counters, evaluation.increment)

    return update


def _each(update: Callable[[Any], Any], batches: list[Any]) -> float:
    """Microseconds of one event, over `batches` again and again."""
    turn: Iterator[Any] = cycle(batches)

    def several() -> None:
        for _ in range(len(batches)):
            update(next(turn))

    return microseconds(several, runs=7) / len(batches)


def print_event_costs() -> None:
    """One line for each task and size of event."""
    print("\nCounting an event (µs of CPU)\n")
    print("ours: with decoding its JSON, and with all that any score or curve is read from;")
    print("river: with reading its scores, but no AUC of several classes;")
    print("numpy: updates only; scikit-learn: some scores anew over the last 1000 rows\n")
    print("task                       rows  decode      ours     river     numpy  scikit-learn")
    if river is None:
        print("(river is not installed: pip install river)")
    for task in TASKS:
        for rows in (1, 100):
            rng = np.random.default_rng(1)
            batches = [task.draw(rng, rows) for _ in range(50)]
            bodies = [body(batch) for batch in batches]
            cells = [_each(decode, bodies), _each(_ours(task.settings), bodies)]
            for name in ("river", "numpy", "scikit-learn"):
                if name == "river" and river is None:
                    cells.append(float("nan"))
                else:
                    update = task.others[name]()
                    if name == "scikit-learn":
                        update(task.draw(rng, RECENT))
                        batches = batches[:5]
                    cells.append(_each(update, batches))
            print(
                f"{task.name:25}  {rows:4}  {cells[0]:6.1f}  {cells[1]:8.1f}  {cells[2]:8.1f}"
                f"  {cells[3]:8.1f}  {cells[4]:12.1f}"
            )


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")  # scikit-learn's, of classes that few rows have not
    print_read_costs()
    print_event_costs()


if __name__ == "__main__":
    main()
