"""The page for people: server-rendered by Jinja2, one stylesheet, no other host."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

if TYPE_CHECKING:
    from .app import App


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("metrics"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def front_page(app: App, arguments: Mapping[str, str]) -> str:
    """The list of models as HTML."""
    from .pages import known_model, model_list
    from .scores import model_view

    models: list[dict[str, Any]] = []
    for model in model_list(app):
        state = known_model(app, model["id"])
        view = model_view(model["id"], state, app.models.of(model["id"]), app.now())
        models.append({**model, "scores": view["scores"], "intervals": view["intervals"]})
    return _templates().get_template("front.html").render(models=models)
