"""What every classifier's rows add: outcomes by class, and sums and histograms of probabilities.

Families (labels): true_positives(class), false_negatives(class), false_positives(class),
confusion(truth, prediction) off the diagonal only; where probabilities are given
probability_rows, log_loss and log_loss_squared, brier and brier_squared (sums over rows),
calibration_rows|hits|confidence(bin), scores(class, bin, positive), top_k_hits(k),
top_k_rows(k). Losses, Brier scores and confidences are counted in
units, to FINE binary places a row; see `exact`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..bins import calibration_bin, logit_bin
from ..counters import NO_LABELS, OTHER, Labels, Number, Vector
from ..exact import FINE_ONE, log_loss, of_fine, of_fine_squared
from ..payload import Values

MAX_SCORED_CLASSES = 64
"""Score histograms (ROC AUC, average precision) are kept for models of at most as many columns."""

MAX_CONFUSIONS = 10_000
"""Cells of a model's confusion matrix that are counted apart: all of 100 classes."""

VECTOR_ROWS = 24
"""From as many rows numpy pays; one row neither waits for its import nor for its overhead."""


def count_outcomes(
    vector: Vector, pairs: Mapping[tuple[str, str], int], counted_as: Mapping[str, str]
) -> None:
    """Add rows by (truth, prediction); a wrong one is a miss of its truth and a false alarm.

    `counted_as` folds classes together after right and wrong are told apart.
    """
    hits: dict[Labels, Number] = {}
    misses: dict[Labels, Number] = {}
    alarms: dict[Labels, Number] = {}
    wrong: dict[Labels, Number] = {}
    for (true, predicted), n in pairs.items():
        true_as, predicted_as = counted_as[true], counted_as[predicted]
        if true == predicted:
            hits[true_as,] = hits.get((true_as,), 0) + n
        else:
            misses[true_as,] = misses.get((true_as,), 0) + n
            alarms[predicted_as,] = alarms.get((predicted_as,), 0) + n
            wrong[true_as, predicted_as] = wrong.get((true_as, predicted_as), 0) + n
    if hits:
        vector["true_positives"] = hits
    if wrong:
        vector["false_negatives"] = misses
        vector["false_positives"] = alarms
        vector["confusion"] = wrong


def cap_confusions(vector: Vector, known: Collection[str]) -> None:
    """Fold fresh cells of the confusion matrix past MAX_CONFUSIONS, each into its truth's rest.

    `known` are the cells that the model has, as `cell` names them. Those whose truth counts as
    `__other__` stay as they are: they are no more than classes, and of rows with both sides there
    scores need the number.
    """
    wrong = vector.get("confusion", {})
    room = MAX_CONFUSIONS - len(known)
    if len(wrong) <= room:
        return
    folded: dict[Labels, Number] = {}
    for (truth, prediction), n in wrong.items():
        if OTHER not in (truth, prediction) and cell(truth, prediction) not in known:
            room -= 1
            if room < 0:
                prediction = OTHER
        folded[truth, prediction] = folded.get((truth, prediction), 0) + n
    vector["confusion"] = folded


class Tally:
    """`count_outcomes` and `cap_confusions`, of some rows after the other.

    No more cells of the confusion matrix are held than are counted apart.
    """

    def __init__(self, counted_as: Mapping[str, str], known: Collection[str]) -> None:
        self._counted_as = counted_as
        self._known = known
        self._room = MAX_CONFUSIONS - len(known)
        self._hits: dict[Labels, Number] = {}
        self._misses: dict[Labels, Number] = {}
        self._alarms: dict[Labels, Number] = {}
        self._wrong: dict[Labels, Number] = {}

    def add(self, pairs: Mapping[tuple[str, str], int]) -> None:
        """Add rows by (truth, prediction)."""
        for (true, predicted), n in pairs.items():
            true_as, predicted_as = self._counted_as[true], self._counted_as[predicted]
            if true == predicted:
                _add(self._hits, (true_as,), n)
            else:
                _add(self._misses, (true_as,), n)
                _add(self._alarms, (predicted_as,), n)
                _add(self._wrong, self._cell(true_as, predicted_as), n)

    def _cell(self, truth: str, prediction: str) -> Labels:
        """Where a wrong prediction counts."""
        labels = truth, prediction
        if labels in self._wrong or prediction == OTHER or cell(*labels) in self._known:
            return labels
        if self._room <= 0:
            return truth, OTHER
        self._room -= 1
        return labels

    def count(self, vector: Vector) -> None:
        """Put all rows into a vector."""
        if self._hits:
            vector["true_positives"] = self._hits
        if self._wrong:
            vector["false_negatives"] = self._misses
            vector["false_positives"] = self._alarms
            vector["confusion"] = self._wrong


def _add(cells: dict[Labels, Number], labels: Labels, n: int) -> None:
    cells[labels] = cells.get(labels, 0) + n


def cell(truth: str, prediction: str) -> str:
    """A cell of the confusion matrix as a label in use."""
    return f"{truth}\0{prediction}"


def count_probabilities(
    vector: Vector,
    rows: Values,
    keys: Sequence[str],
    truth: Sequence[int],
    k: int,
    best: Sequence[int] | None = None,
) -> list[tuple[float, float]]:
    """Add what N rows of K probabilities tell; returns each row's log loss and Brier score.

    These are as counted, and of many rows at once they are left out. `keys` are the K columns'
    class keys, `truth` the column of each row's truth, `best` that of its largest probability,
    where that is known already.
    """
    if len(truth) >= VECTOR_ROWS:
        from .rows import count_probability_rows

        return count_probability_rows(vector, rows.matrix(), keys, truth, k, best)
    measures = []
    losses = squares = briers = brier_squares = 0
    sizes: dict[Labels, Number] = {}
    hits: dict[Labels, Number] = {}
    confidences: dict[Labels, int] = {}
    scores: dict[Labels, Number] = {}
    top = 0
    scored = columns_scored(keys)
    for start, true in enumerate(truth):
        row = rows.row(start)
        loss, distance = round(log_loss(row[true]) * FINE_ONE), round(brier(row, true) * FINE_ONE)
        measures.append((loss / FINE_ONE, distance / FINE_ONE))
        losses += loss
        squares += loss * loss
        briers += distance
        brier_squares += distance * distance
        confidence = max(row)
        bin = (str(calibration_bin(confidence)),)
        sizes[bin] = sizes.get(bin, 0) + 1
        hits[bin] = hits.get(bin, 0) + (row.index(confidence) == true)
        confidences[bin] = confidences.get(bin, 0) + round(confidence * FINE_ONE)
        if k:
            top += rank(row, true) < k
        for column in scored:
            key = (keys[column], str(logit_bin(row[column])), "1" if column == true else "0")
            scores[key] = scores.get(key, 0) + 1
    vector["probability_rows"] = {NO_LABELS: len(truth)}
    vector["log_loss"] = {NO_LABELS: of_fine(losses)}
    vector["log_loss_squared"] = {NO_LABELS: of_fine_squared(squares)}
    vector["brier"] = {NO_LABELS: of_fine(briers)}
    vector["brier_squared"] = {NO_LABELS: of_fine_squared(brier_squares)}
    vector["calibration_rows"] = sizes
    vector["calibration_hits"] = hits
    vector["calibration_confidence"] = {bin: of_fine(sum) for bin, sum in confidences.items()}
    if scores:
        vector["scores"] = scores
    if k:
        vector["top_k_rows"] = {(str(k),): len(truth)}
        vector["top_k_hits"] = {(str(k),): top}
    return measures


def brier(row: Sequence[float], true: int) -> float:
    """The Brier score of a row; of two classes as scikit-learn has it. Summed column by column."""
    errors = list(row)
    errors[true] -= 1
    distance = 0.0
    for error in errors:
        distance += error * error
    return distance / 2 if len(row) == 2 else distance


def rank(row: Sequence[float], column: int) -> int:
    """How many columns beat `column`; of equal ones the later do, as in scikit-learn's top_k."""
    score = row[column]
    return sum(x > score for x in row) + sum(x == score for x in row[column + 1 :])


def columns_scored(keys: Sequence[str]) -> range:
    """The columns whose scores are binned: the second of two, all of some, none of very many."""
    if len(keys) == 2:
        return range(1, 2)
    return range(len(keys)) if len(keys) <= MAX_SCORED_CLASSES else range(0)
