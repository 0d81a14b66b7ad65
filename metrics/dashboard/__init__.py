"""The page for people: server-rendered by Jinja2, with one stylesheet, and of no other host.

All of it is at `GET /`, the only path that stock parliament has: `?model=` names a model. Style and
script are part of each page and named in its policy by their digests, so nothing else can run.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import charts, words

if TYPE_CHECKING:
    from flask import Request

    from ..app import App

_STATIC = Path(__file__).parent.parent / "static"
STYLE = (_STATIC / "page.css").read_text(encoding="utf-8")
SCRIPT = (_STATIC / "page.js").read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_digest(STYLE)}; script-src {_digest(SCRIPT)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""What goes out with every page."""


@cache
def templates() -> Environment:
    """The templates, and the filters and constants they use."""
    environment = Environment(
        loader=PackageLoader("metrics"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(style=Markup(STYLE), script=Markup(SCRIPT), SIDE=charts.SIDE)
    environment.filters.update(
        figure=words.figure,
        brief=words.brief,
        percent=words.percent,
        cut=words.cut,
        words=words.title,
        ago=words.ago,
        clock=words.clock,
        shade=charts.shade,
    )
    return environment


def page(app: App, request: Request) -> str:
    """The page that `request` asks for: one model's with `?model=`, else the list of models.

    Raises NotFound for an unknown model, Refused for a window that is not kept, Unreadable for a
    model whose state cannot be shown.
    """
    if request.args.get("model"):
        from .model import model_context

        def render() -> str:
            return _render("model.html", app, **model_context(app, request))

        return app.isolation.one(request.args["model"], render)
    from .models import list_context

    return _render("models.html", app, **list_context(app, request))


def error_page(app: App, title: str, reason: str) -> str:
    """A page that tells why there is none."""
    return _render("error.html", app, title=title, reason=reason)


def _render(template: str, app: App, **context: Any) -> str:
    return templates().get_template(template).render(now=app.now(), **context)
