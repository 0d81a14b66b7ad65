"""The confusion matrix of a model with many classes: its cells in the state are bounded."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from metrics.counters import OTHER, Vector
from metrics.evaluators import classification
from metrics.model_settings import ModelSettings
from metrics.scores import model_view
from metrics.state import ModelState
from metrics.windows import ALL_TIME
from tests.test_exposition import Fixed

MODEL = "seldon/iris/default/classifier"
CLASSES = 60


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A cap that few events reach."""
    monkeypatch.setattr(classification, "MAX_CONFUSIONS", 200)
    return 200


def test_cells_are_bounded_and_scores_stay_right(few: int) -> None:
    """Whatever the events, batches and restarts; rows by truth still add up, and scores hold."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, CLASSES, 4000)
    guess = np.where(rng.random(4000) < 0.4, truth, rng.integers(0, CLASSES, 4000))
    fixed = Fixed()
    names = [f"c{number}" for number in range(CLASSES)]
    for part in np.array_split(np.arange(4000), 400):
        fixed.send([names[at] for at in truth[part]], [names[at] for at in guess[part]])
        if part[0] % 40 == 0:
            fixed.app.labels._known.clear()  # as after a restart
    state = fixed.app.read().models[MODEL]
    cells = state.all_time["confusion"]
    assert few <= len(cells) <= few + CLASSES
    assert sum(cells.values()) == (truth != guess).sum()
    for name in names:
        own = sum(n for (true, _), n in cells.items() if true == name)
        assert own == state.all_time["false_negatives"].get((name,), 0)
    assert all(len(vector.get("confusion", ())) <= few + CLASSES for vector in state.panes.values())
    view = model_view(MODEL, state, fixed.app.models.of(MODEL), fixed.now)
    assert view["scores"]["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert view["scores"]["f1_macro"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert view["scores"]["matthews_corrcoef"] == pytest.approx(matthews_corrcoef(truth, guess))
    assert OTHER in {each["prediction"] for each in view["top_confusions"]}
    fixed.app.close()


def test_a_matrix_of_as_many_cells_is_whole() -> None:
    """All cells of a hundred classes are counted apart."""
    fixed = Fixed()
    truth = np.repeat(np.arange(100), 100)
    guess = np.tile(np.arange(100), 100)
    fixed.send(truth.tolist(), guess.tolist())
    cells = fixed.app.read().models[MODEL].all_time["confusion"]
    assert len(cells) == 100 * 99
    assert not [cell for cell in cells if OTHER in cell]
    fixed.app.close()


def test_one_large_batch_is_bounded_too() -> None:
    """A single event with every pair of a thousand classes."""
    fixed = Fixed()
    rng = np.random.default_rng(3)
    truth, guess = rng.integers(0, 1000, (2, 60_000))
    fixed.send(truth.tolist(), guess.tolist())
    state = fixed.app.read().models[MODEL]
    assert len(state.all_time["confusion"]) <= classification.MAX_CONFUSIONS + 1000
    assert sum(state.all_time["confusion"].values()) == (truth != guess).sum()
    fixed.app.close()


def test_scores_stay_in_range_where_classes_count_as_one() -> None:
    """A wrong row within `__other__` is a miss and a false alarm of it, and one row."""
    rng = np.random.default_rng(4)
    truth = rng.integers(0, CLASSES, 3000)
    guess = np.where(rng.random(3000) < 0.2, truth, rng.integers(0, CLASSES, 3000))
    fixed = Fixed(FEEDBACK_MAX_CLASSES="6", FEEDBACK_CONFUSION_CLASSES="20")
    names = [f"c{number}" for number in range(CLASSES)]
    for at in range(6):
        fixed.send([names[at]], [names[at]])
    for part in np.array_split(np.arange(3000), 100):
        fixed.send([names[at] for at in truth[part]], [names[at] for at in guess[part]])
    state = fixed.app.read().models[MODEL]
    view = model_view(MODEL, state, fixed.app.models.of(MODEL), fixed.now)
    truth, guess = np.r_[:6, truth], np.r_[:6, guess]
    assert view["scores"]["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert view["scores"]["recall_micro"] == pytest.approx(accuracy_score(truth, guess))
    rest = {each["class"]: each for each in view["classes"]}[OTHER]
    negatives = truth < 6
    assert rest["specificity"] == pytest.approx((guess[negatives] < 6).mean())
    assert {"matthews_corrcoef", "cohen_kappa"}.isdisjoint(view["scores"])
    assert all(0 <= score <= 1 for score in view["scores"].values())
    lines = [line for line in fixed.text().splitlines() if "true_negatives_total{" in line]
    assert len(lines) == 7
    (line,) = [line for line in lines if OTHER in line]
    assert float(line.split()[-1]) == ((truth < 6) & (guess < 6)).sum()
    fixed.app.close()


def test_rows_within_the_rest_are_told_apart_from_folded_cells(few: int) -> None:
    """However many cells there are: of classes that count as one no other cell is added to."""
    fixed = Fixed(FEEDBACK_MAX_CLASSES="20")
    names = [f"c{number}" for number in range(80)]
    rng = np.random.default_rng(5)
    truth, guess = rng.integers(0, 80, (2, 6000))
    truth[:20] = guess[:20] = np.arange(20)
    for part in np.array_split(np.arange(6000), 300):
        fixed.send([names[at] for at in truth[part]], [names[at] for at in guess[part]])
    cells = fixed.app.read().models[MODEL].all_time["confusion"]
    assert few <= len(cells) <= few + 80
    assert cells[OTHER, OTHER] == ((truth >= 20) & (guess >= 20) & (truth != guess)).sum()
    fixed.app.close()


def test_labels_of_a_row_that_count_as_one() -> None:
    """Several labels a row are `__other__`: each of them is a row of it, right or wrong."""
    rng = np.random.default_rng(6)
    truth, guess = rng.integers(0, 2, (2, 400, 9))
    fixed = Fixed(FEEDBACK_TASK="multilabel", FEEDBACK_MAX_CLASSES="3")
    for at in range(0, 400, 10):
        part = slice(at, at + 10)
        fixed.send(truth[part].tolist(), guess[part].tolist())
    state = fixed.app.read().models[MODEL]
    view = model_view(MODEL, state, fixed.app.models.of(MODEL), fixed.now)
    folded = {each["class"]: each for each in view["classes"]}[OTHER]
    known = np.array([str(at) in {each["class"] for each in view["classes"]} for at in range(9)])
    assert known.sum() == 3
    negatives = truth[:, ~known] == 0
    assert folded["specificity"] == pytest.approx((guess[:, ~known][negatives] == 0).mean())
    assert view["scores"]["specificity_micro"] == pytest.approx((guess[truth == 0] == 0).mean())
    assert "true_negatives_total{" in fixed.text()
    fixed.app.close()


def test_a_class_that_was_counted_by_its_name_and_by_its_column() -> None:
    """A row of both, before the names were known, is one row of the class."""
    vector: Vector = {
        "false_negatives": {("b",): 2},
        "false_positives": {("1",): 2},
        "confusion": {("b", "1"): 2},
    }
    state = ModelState({ALL_TIME: vector}, {}, {"names": ["a", "b"]})
    view = model_view(MODEL, state, ModelSettings(), 0.0)
    assert {each["class"]: each.get("specificity") for each in view["classes"]} == {
        "a": 1.0,
        "b": None,
    }
    assert "cohen_kappa" not in view["scores"]
