"""One row of probabilities against the index of its class: what most events are, straight through.

Equal to what the general way adds, which takes all that is left: `multiclass` asks here first.
"""

from __future__ import annotations

from math import log

from ..bins import CALIBRATION_BINS, MAX_LOGIT_BIN, calibration_bin, logit_bin
from ..counters import NO_LABELS, Labels, Number, Vector
from ..model_settings import ModelSettings
from ..payload import Feedback
from .classes import TOLERANCE, Classes
from .classification import CLIP, MAX_SCORED_CLASSES, rank
from .evaluation import Evaluation, Known

_KEYS = tuple(map(str, range(MAX_SCORED_CLASSES)))
_LOGITS = {bin: str(bin) for bin in range(-MAX_LOGIT_BIN, MAX_LOGIT_BIN + 1)}
_CONFIDENCES = tuple((str(bin),) for bin in range(CALIBRATION_BINS))


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation | None:
    """The increment of an event of this form; None for any other, right or wrong."""
    truth, prediction = feedback.truth, feedback.prediction
    if prediction is None or truth.width or truth.rows != 1 or prediction.rows != 1:
        return None
    width = prediction.width
    true = truth.flat[0]
    if not 2 <= width <= MAX_SCORED_CLASSES or type(true) is not int or not 0 <= true < width:
        return None
    row = prediction.flat
    confidence = max(row)
    if confidence >= 1 or min(row) < 0 or abs(sum(row) - 1) > TOLERANCE:
        return None  # among them one-hot labels
    if prediction.names or truth.names or settings.classes or "names" in known.constants:
        classes = Classes(feedback, settings, known)
        if classes.proposed or len(classes.names) != width:
            return None
        if prediction.names not in (None, classes.names):
            return None
        if not classes.are_columns(list(range(width))):
            return None
    best = row.index(confidence)
    key, predicted = _KEYS[true], _KEYS[best]
    labels = known.labels.get("class", ())
    if not (key in labels and predicted in labels) and len(labels) + 2 > settings.max_classes:
        return None  # one of them may have to be folded
    increment: Vector
    if best == true:
        increment = {"true_positives": {(key,): 1}}
    else:
        increment = {
            "false_negatives": {(key,): 1},
            "false_positives": {(predicted,): 1},
            "confusion": {(key, predicted): 1},
        }
    p = row[true]
    loss = -log(min(max(p, CLIP), 1 - CLIP))
    distance = sum([x * x for x in row]) - 2 * p + 1
    bin = _CONFIDENCES[calibration_bin(confidence)]
    scores: dict[Labels, Number]
    if width == 2:
        distance /= 2
        scores = {("1", _LOGITS[logit_bin(row[1])], _KEYS[true]): 1}
    else:
        scores = {
            (each, _LOGITS[logit_bin(x)], "1" if each is key else "0"): 1
            for each, x in zip(_KEYS, row, strict=False)
        }
    increment |= {
        "probability_rows": {NO_LABELS: 1},
        "log_loss": {NO_LABELS: loss},
        "log_loss_squared": {NO_LABELS: loss * loss},
        "brier": {NO_LABELS: distance},
        "brier_squared": {NO_LABELS: distance * distance},
        "calibration_rows": {bin: 1},
        "calibration_hits": {bin: int(best == true)},
        "calibration_confidence": {bin: confidence},
        "scores": scores,
    }
    if settings.k:
        k = (str(settings.k),)
        increment["top_k_rows"] = {k: 1}
        increment["top_k_hits"] = {k: int(rank(row, true) < settings.k)}
    return Evaluation(1, increment, {("columns", NO_LABELS): width})
