"""What the page of one model shows: its view as JSON has it, and how it compares over windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ..scores.headline import FEW_ROWS, Headline, headline_score, trend
from ..scores.view import ALL, naming, score_vector, vector_of
from . import charts

if TYPE_CHECKING:
    from flask import Request

    from ..app import App

MAX_ROWS = 100
"""Rows of a table of outputs, routes or segments."""
WIDE_MATRIX = 12
"""From more classes on a heat map's cells have room for the number only."""
_AVERAGES = ("_macro", "_micro", "_weighted")


def model_context(app: App, request: Request) -> dict[str, Any]:
    """The model called `?model=`, over `?window=`. Raises NotFound, Refused."""
    from ..pages import known_model, one_model, summary

    model = request.args["model"]
    view = one_model(app, model, request)
    state, settings, now = known_model(app, model), app.models.of(model), app.now()
    names = naming(state, settings)
    columns: list[dict[str, Any]] = []
    for window in (None, *settings.windows):
        name = window.name if window else ALL
        scored = score_vector(vector_of(state, window, now), view["task"], settings, names)
        columns.append(
            {
                "window": name,
                "link": _link(model, name),
                "rows": scored.rows,
                "scores": scored.scores,
                "intervals": scored.intervals,
                "bounds": scored.bounds,
            }
        )
    first = _headline(view, view["task"])
    chosen = next((each for each in settings.windows if each.name == view["window"]), None)
    over = chosen or max(settings.windows, key=lambda each: each.seconds, default=None)
    scores = list(dict.fromkeys(score for column in columns for score in column["scores"]))
    averages = [score for score in scores if score.endswith(_AVERAGES)]
    return {
        "view": view,
        "known": summary(app, model, state),
        "columns": columns,
        "scores": [score for score in scores if score not in averages],
        "averages": averages,
        "headline": first,
        "over": over,
        "line": charts.line(trend(state, over, now, view["task"]), 600, 150, 36) if over else None,
        "matrix_view": _matrix(view.get("confusion_matrix")),
        "reliability": charts.reliability(
            view.get("calibration", ()), settings.confidence, FEW_ROWS
        ),
        "roc": charts.roc(view["roc_curve"]) if "roc_curve" in view else None,
        "largest_error": max(
            (
                error
                for output in view.get("outputs", ())[:MAX_ROWS]
                for error in output["absolute_error_quantiles"].values()
            ),
            default=0,
        ),
        "segments": [
            {**each, "headline": _headline(each, view["task"])} for each in view.get("segments", ())
        ],
        "level": settings.confidence,
        "json": f"{_link(model, view['window'])}&format=json",
        "few_rows": FEW_ROWS,
        "most": MAX_ROWS,
    }


def _headline(view: dict[str, Any], task: str) -> Headline:
    score = headline_score(task)
    return Headline(score, view["scores"].get(score), view["intervals"].get(score), view["rows"])


def _link(model: str, window: str) -> str:
    return "/?" + urlencode({"model": model, **({} if window == ALL else {"window": window})})


def _matrix(view: dict[str, Any] | None) -> dict[str, Any] | None:
    """The view's confusion matrix with the share that each cell has of its row, of its truth."""
    if view is None:
        return None
    return {
        "labels": view["labels"],
        "wide": len(view["labels"]) > WIDE_MATRIX,
        "rows": [
            (label, sum(row), [(n, n / sum(row) if n else 0.0) for n in row])
            for label, row in zip(view["labels"], view["matrix"], strict=True)
        ],
    }
