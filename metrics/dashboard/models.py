"""What the list of models shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from markupsafe import Markup

from ..scores.headline import headline, trend
from ..scores.view import ALL, task_of
from ..windows import Window
from .charts import line

if TYPE_CHECKING:
    from flask import Request

    from ..app import App
    from ..model_settings import ModelSettings
    from ..state import ModelState

PAGE = 50
"""Models on one page."""
_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]-]+")


def list_context(app: App, request: Request) -> dict[str, Any]:
    """One page of the models whose id contains `?q=`, over `?window=`.

    Raises Refused for a window that is none of the default ones.
    """
    from ..pages import known_models, summary, window_called
    from . import templates

    now, wanted = app.now(), request.args.get("q", "").strip()
    name = request.args.get("window", ALL)
    window = window_called(name, app.settings.windows)
    known = known_models(app)
    found = [each for each in known if wanted.casefold() in each[0].casefold()]
    pages = max(1, -(-len(found) // PAGE))
    number = min(max(1, request.args.get("page", 1, type=int)), pages)
    on_page = found[PAGE * (number - 1) : PAGE * number]

    def row(model: str, state: ModelState) -> Markup:
        standing = _standing(state, app.models.of(model), window, now)
        row = summary(app, model, state) | standing
        text = templates().get_template("row.html").render(row=row, window=name, now=now)
        return Markup(text)

    def to(**changes: Any) -> str:
        arguments = {"q": wanted, "window": name, "page": number, **changes}
        usual = {"q": "", "window": ALL, "page": 1}
        said = {key: value for key, value in arguments.items() if value != usual[key]}
        return f"/?{urlencode(said)}"

    return {
        "rows": [row for _, row in app.isolation.each(on_page, row)],
        "on_page": len(on_page),
        "first": PAGE * (number - 1) + 1,
        "found": len(found),
        "known": len(known),
        "wanted": wanted,
        "window": name,
        "windows": [(each, to(window=each, page=1)) for each in _names(app.settings.windows)],
        "page": number,
        "pages": pages,
        "to": to,
        "address": _address(app, request),
    }


def _names(windows: tuple[Window, ...]) -> list[str]:
    return [ALL, *(window.name for window in windows)]


def _standing(
    state: ModelState, settings: ModelSettings, window: Window | None, now: float
) -> dict[str, Any]:
    """A model's headline over `window`, and its line over that or, of all time, the longest."""
    if window is not None and window not in settings.windows:
        return {"kept": False}

    task = task_of(state, settings)
    over = window or max(settings.windows, key=lambda each: each.seconds, default=None)
    return {
        "kept": True,
        "headline": headline(state, window, now, task, settings.confidence),
        "line": line(trend(state, over, now, task), 120, 28) if over else None,
        "over": over,
    }


def _address(app: App, request: Request) -> str:
    """Where a first event can be sent: as the reader got here, if that is fit for a shell."""
    host = request.headers.get("host", "")
    secure = request.headers.get("x-forwarded-proto", "") == "https"
    if not _ADDRESS.fullmatch(host):
        host = f"localhost:{app.settings.port}"
    return f"http{'s' if secure else ''}://{host}/"
