"""Regression feedback: numbers against numbers, in one output or several.

Families, each by output ("0", "1", …): targets (rows), absolute_error, squared_error, error
(prediction - truth), truth_offset and truth_offset_squared (truth less the model's origin),
percentage_error and percentage_rows (rows whose truth is not 0), absolute_errors(output, bin).

The origin is the first truth ever seen, fixed by the first writer: sums of squares about it stay
exact where sums about zero cancel (targets of 1e8 ± 1), and they still add up over replicas.
"""

from __future__ import annotations

from ..bins import error_bin
from ..counters import LARGEST, Labels, Number
from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from .classes import agree
from .evaluation import Evaluation, Known

FAMILIES = (
    "targets",
    "absolute_error",
    "squared_error",
    "error",
    "truth_offset",
    "truth_offset_squared",
    "percentage_error",
    "percentage_rows",
)
MAX_OUTPUTS = 1000
"""Outputs of a model: each has its own counters."""
ZERO = "zero"
"""The bin of errors too small for a logarithm."""


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """The increment of one event's rows. Raises Refused for strings and for other outputs."""
    assert feedback.prediction is not None
    for side in (feedback.truth, feedback.prediction):
        if not side.numeric:
            raise Refused(side.field, "must be numbers: the model's task is regression")
    truth, prediction = agree(feedback.truth, feedback.prediction, scalars=True)
    if truth.width != prediction.width:
        raise Refused(
            prediction.field,
            f"{prediction.width or 1} outputs, but {truth.field} has {truth.width or 1}",
        )
    outputs = truth.width or 1
    if outputs > MAX_OUTPUTS:
        raise Refused(truth.field, f"{outputs} outputs; at most {MAX_OUTPUTS} are taken")
    origins = known.constants.get("origins")
    if origins is None:
        origins = [float(value) for value in truth.flat[:outputs]]
    elif len(origins) != outputs:
        raise Refused(truth.field, f"{outputs} outputs; this model has {len(origins)}")
    evaluation = Evaluation(rows=len(truth), constants={"origins": list(origins)})
    for output in range(outputs):
        _add_output(evaluation, truth, prediction, output, outputs, origins[output])
    return evaluation


def _add_output(
    evaluation: Evaluation,
    truth: Values,
    prediction: Values,
    output: int,
    outputs: int,
    origin: float,
) -> None:
    """Add one output's column."""
    absolute = squared = error = offset = offset_squared = percentage = 0.0
    percentage_rows = 0
    name = str(output)
    bins: dict[Labels, Number] = {}
    for true, predicted in zip(
        truth.flat[output::outputs], prediction.flat[output::outputs], strict=True
    ):
        residual = float(predicted) - float(true)
        size = abs(residual)
        absolute += size
        squared += residual * residual
        if not squared < LARGEST:
            break  # refused below
        error += residual
        centred = float(true) - origin
        offset += centred
        offset_squared += centred * centred
        if true:
            percentage += size / abs(true)
            percentage_rows += 1
        bin = error_bin(size)
        key = (name, ZERO if bin is None else str(bin))
        bins[key] = bins.get(key, 0) + 1
    sums = (
        len(truth),
        absolute,
        squared,
        error,
        offset,
        offset_squared,
        percentage,
        percentage_rows,
    )
    if not all(abs(value) < LARGEST for value in sums):
        raise Refused(truth.field, "numbers too large to be squared")
    for family, value in zip(FAMILIES, sums, strict=True):
        evaluation.increment.setdefault(family, {})[name,] = value
    evaluation.increment.setdefault("absolute_errors", {}).update(bins)
