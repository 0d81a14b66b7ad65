"""Takes the README's pictures of the page: `python -m tests.pictures`, with Chromium."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.browser import Browser
from tests.servers_http import ROOT, OwnServer
from tests.test_page import CLINIC, DIGITS, MODELS, VISION, of, tell

TAKEN = {
    "models-light": ("", False, 530),
    "models-dark": ("", True, 530),
    "classifier-light": (of(VISION), False, 1700),
    "screening-dark": (of(CLINIC), True, 2160),
}
"""Name -> query, whether it is dark, and the height."""


def main() -> None:
    """Serve the models of the tests and write docs/pictures/*.webp."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        directory = Path(name)
        models = directory / "models.yaml"
        models.write_text(MODELS % ", ".join(DIGITS))
        with (
            OwnServer(directory, FEEDBACK_MODELS=str(models)) as server,
            Browser(directory) as browser,
        ):
            tell(server)
            for picture, (query, dark, height) in TAKEN.items():
                page = browser.open(f"http://127.0.0.1:{server.port}/{query}", dark=dark)
                page.picture(ROOT / "docs" / "pictures" / f"{picture}.webp", height)
                page.close()


if __name__ == "__main__":
    main()
