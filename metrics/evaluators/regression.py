"""Regression feedback: numbers against numbers, in one output or several.

Families, each by output ("0", "1", …): targets (rows), absolute_error, squared_error, error
(prediction - truth), truth_offset and truth_offset_squared (truth less the model's origin),
percentage_error and percentage_rows (rows whose truth is not 0), absolute_errors(output, bin).

Sums are exact (`exact`), so that any origin will do: it is 0, but for models that were begun when
it was their first truth. `origins` also says how many outputs a model has.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..bins import error_bin
from ..counters import LARGEST, MAX_ROOT
from ..errors import Refused
from ..exact import squared, to_units
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from .classes import agree
from .evaluation import Evaluation, Known

REAL_FAMILIES = (
    *("absolute_error", "squared_error", "error"),
    *("truth_offset", "truth_offset_squared", "percentage_error"),
)
MAX_OUTPUTS = 1000
"""Outputs of a model: each has its own counters."""
MANY_ROWS = 80
"""From as many rows numpy pays."""
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
        origins = [0.0] * outputs
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
    name, found = str(output), None
    if len(truth) >= MANY_ROWS:
        from .regression_rows import many_rows

        found = many_rows(truth.matrix()[:, output], prediction.matrix()[:, output], origin)
    if found is None:
        pairs = zip(truth.flat[output::outputs], prediction.flat[output::outputs], strict=True)
        found = row_by_row(pairs, origin, truth.field)
    sums, percentage_rows, bins = found
    counts = {"targets": len(truth), "percentage_rows": percentage_rows}
    for family, value in (*counts.items(), *zip(REAL_FAMILIES, sums, strict=True)):
        evaluation.increment.setdefault(family, {})[name,] = value
    evaluation.increment.setdefault("absolute_errors", {}).update(
        {(name, ZERO if bin is None else str(bin)): number for bin, number in bins.items()}
    )


def row_by_row(
    pairs: Iterable[tuple[float, float]], origin: float, field: str
) -> tuple[list[int], int, dict[int | None, int]]:
    """The sums of `REAL_FAMILIES`, the rows whose truth is not 0, and absolute errors by bin.

    `pairs` are truth and prediction. Raises Refused for numbers too large or too small.
    """
    sums = [0] * len(REAL_FAMILIES)
    absolute, squares, error, offset, offset_squares, percentage = range(len(sums))
    percentage_rows = 0
    about = to_units(origin)
    bins: dict[int | None, int] = {}
    for true, predicted in pairs:
        residual = float(predicted) - float(true)
        size = abs(residual)
        if not (size < MAX_ROOT and abs(true - origin) < MAX_ROOT):
            raise Refused(field, "numbers too large to be squared")
        units = to_units(residual)
        sums[absolute] += abs(units)
        sums[squares] += squared(units)
        sums[error] += units
        centred = to_units(true) - about
        sums[offset] += centred
        sums[offset_squares] += squared(centred)
        if true:
            share = size / abs(true)
            if not share < LARGEST:
                raise Refused(field, "numbers too small to be divided by")
            sums[percentage] += to_units(share)
            percentage_rows += 1
        bin = error_bin(size)
        bins[bin] = bins.get(bin, 0) + 1
    return sums, percentage_rows, bins
