"""Feedback -> increment: what one event adds to its model's counters, whatever the task.

`evaluate` is pure: the same feedback under the same settings and constants gives the same
increment, so that a redelivered event's reply can tell its contribution again, and so that a
store that knows other constants can ask for the event to be evaluated once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..counters import NO_LABELS
from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from . import binary, multiclass, multilabel, regression, reward, user_metrics
from .evaluation import Evaluation, Known

__all__ = ["Evaluation", "Known", "evaluate"]

_Evaluator = Callable[[Feedback, ModelSettings, Known], Evaluation]

_TASKS: Mapping[str, _Evaluator] = {
    "multiclass": multiclass.evaluate,
    "binary": binary.evaluate,
    "multilabel": multilabel.evaluate,
    "regression": regression.evaluate,
}


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """What `feedback` adds. Raises Refused where it contradicts the model's task or itself."""
    if feedback.prediction is None:
        raise Refused(
            "response", "missing; feedback without a prediction needs FEEDBACK_JOIN_TTL to be set"
        )
    task, decided = settings.task, False
    if task == "auto":
        task = known.constants.get("task", "")
        if not task:
            task, decided = infer(feedback.truth, feedback.prediction)
        elif type(task) is not str or task not in _TASKS:  # a store that others wrote to
            task, _ = infer(feedback.truth, feedback.prediction)
    if task in _TASKS:
        try:
            evaluation = _TASKS[task](feedback, settings, known)
        except Refused as error:
            if settings.task == "auto" and not decided and known.constants.get("task"):
                raise Refused(
                    error.field,
                    f"{str(error).removeprefix(error.field + ': ')} "
                    f"(the model's task is {task}, by its first events; FEEDBACK_TASK or "
                    "FEEDBACK_MODELS decides otherwise)",
                ) from None
            raise
    else:
        evaluation = user_metrics.evaluate_custom(feedback, settings, known)
    if decided:
        evaluation.constants["task"] = task
    if type(evaluation.increment) is dict:  # others say so themselves
        evaluation.increment["events"] = {NO_LABELS: 1}
        evaluation.increment["rows"] = {NO_LABELS: evaluation.rows}
    if feedback.reward is not None:
        reward.evaluate(feedback, evaluation, known)
    if feedback.metrics:
        user_metrics.evaluate(feedback.metrics, "truth.meta.metrics", evaluation, known)
    return evaluation


def infer(truth: Values, prediction: Values) -> tuple[str, bool]:
    """The task that shapes and types speak for, and whether they rule out the others.

    Two-dimensional scores, one-hot rows, strings and integral labels are multiclass; a fraction
    against a 0/1 truth is binary; a truth that is no integer is regression. Zeros and ones on
    both sides are counted as labels but decide nothing: the next event may be a probability.
    """
    if truth.width and prediction.width and truth.width == prediction.width:
        if not truth.integral() and not _rows_sum_to_one(truth):
            return "regression", True
        return "multiclass", True
    if truth.width or prediction.width or not truth.numeric or not prediction.numeric:
        return "multiclass", True
    if not truth.integral():
        return "regression", True
    if len(truth) == 1 < len(prediction):
        return "multiclass", True
    zero_one = truth.among({0, 1})
    if prediction.integral():
        return "multiclass", not (zero_one and prediction.among({0, 1}))
    if zero_one and all(0 <= value <= 1 for value in prediction.flat):
        return "binary", True
    return "regression", True


def _rows_sum_to_one(values: Values) -> bool:
    return all(
        min(row) >= 0 and abs(sum(row) - 1) <= 1e-3 for row in map(values.row, range(len(values)))
    )
