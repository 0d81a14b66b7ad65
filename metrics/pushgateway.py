"""The totals of a function that ends before it is scraped, pushed to a Pushgateway.

After commits, at most once an interval, and once more when all is committed at the end, a thread
puts the models' families under one grouping key, the job; there is no instance in it, since all
processes of a function have the same totals. What belongs to this server is left out, and so are
the scores of sliding windows: those go on sliding, and what was pushed would not. A gateway that
is down is tried again an interval later; the totals of then hold all that it missed.

Source: prometheus_client's push_to_gateway, which knows the gateway's protocol.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING

from .errors import StoreUnavailable
from .server_stats import PUSH_OUTCOMES

if TYPE_CHECKING:
    from .app import App

logger = logging.getLogger("metrics.pushgateway")

TIMEOUT_SECONDS = 2.0
"""How long one push may take."""
PUSHED, FAILED = PUSH_OUTCOMES


class Pusher:
    """Pushes an app's totals to one gateway from a thread of its own."""

    def __init__(self, app: App, address: str, job: str, interval: float) -> None:
        self._app = app
        self._address = address
        self._job = job
        self._interval = interval
        self._commits = app.stats.commits()
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pushgateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push what is new for the last time, and stop."""
        self._closing.set()
        self._thread.join(2 * TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self._push()
        self._push()

    def _push(self) -> None:
        commits = self._app.stats.commits()
        if commits == self._commits:
            return
        try:
            # Another worker must not read before us and be heard after us: a counter would fall.
            with self._app.stats.alone():
                self._send()
        except (OSError, HTTPException, StoreUnavailable) as error:
            if not self._failing:
                logger.warning("the Pushgateway does not get totals: %s", error)
            self._failing = True
            self._app.stats.pushed(FAILED)
            return
        except Exception:
            logger.exception("totals are not pushed")
            self._app.stats.pushed(FAILED)
            return
        if self._failing:
            logger.info("the Pushgateway gets totals again")
        self._failing = False
        self._commits = commits
        self._app.stats.pushed(PUSHED)

    def _send(self) -> None:
        # Imported when first needed: a cold start answers its first event without them.
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import default_handler, push_to_gateway

        from .exposition import render

        self._app.committer.refresh(TIMEOUT_SECONDS)  # `read` shows what other workers added
        text, _ = render(self._app, "")

        def handler(
            url: str,
            method: str,
            timeout: float | None,
            headers: list[tuple[str, str]],
            data: bytes,
        ) -> Callable[[], None]:
            return default_handler(url, method, timeout, headers, lasting(text))

        registry = CollectorRegistry()  # stays empty: `render` has encoded each model already
        push_to_gateway(
            self._address, self._job, registry, timeout=TIMEOUT_SECONDS, handler=handler
        )


def lasting(exposition: bytes) -> bytes:
    """The lines of a text exposition that stay true when its server is gone.

    Samples of models, over all time. A label's text cannot pass for another label: its quotes are
    escaped.
    """
    return b"".join(line for line in exposition.splitlines(keepends=True) if _lasts(line))


def _lasts(line: bytes) -> bool:
    if line.startswith(b"#"):
        return True
    sliding = line.startswith(b"feedback_") and b'window="' in line and b'window="all"' not in line
    return b'deployment_name="' in line and not sliding
