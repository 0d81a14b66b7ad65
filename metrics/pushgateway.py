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
import re
import threading
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.request import Request

from . import background
from .errors import StoreUnavailable
from .outgoing import opener, without_user
from .server_stats import PUSH_OUTCOMES

if TYPE_CHECKING:
    from .app import App

logger = logging.getLogger("metrics.pushgateway")

TIMEOUT_SECONDS = 2.0
"""How long one push may take."""
LAST_SECONDS = 2.0
"""How long `close` waits for the last push, and for one that hangs."""
PUSHED, FAILED = PUSH_OUTCOMES


class Pusher:
    """Pushes an app's totals to one gateway from a thread of its own."""

    def __init__(self, app: App, address: str, job: str, interval: float) -> None:
        self._app = app
        self._address, self._headers = without_user(address)
        self._job = job
        self._interval = interval
        self._commits = app.stats.commits()
        self._failing = False
        self._closing = threading.Event()
        self._thread = background.start("pushgateway", self._turn, app.stats.unforeseen)

    def close(self) -> None:
        """Push what is new for the last time, within LAST_SECONDS, and stop."""
        self._closing.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            logger.error("the last totals are not pushed")

    def _turn(self) -> bool:
        """Wait an interval and push; tells whether to go on."""
        last = self._closing.wait(self._interval)
        self._push()
        return not last

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
        except Exception:  # a bug: reported where the thread goes on
            self._app.stats.pushed(FAILED)
            raise
        if self._failing:
            logger.info("the Pushgateway gets totals again")
        self._failing = False
        self._commits = commits
        self._app.stats.pushed(PUSHED)

    def _send(self) -> None:
        # Imported when first needed: a cold start answers its first event without them.
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import push_to_gateway

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
            request = Request(url, lasting(text), {**dict(headers), **self._headers}, method=method)
            return lambda: opener().open(request, timeout=timeout).close()

        registry = CollectorRegistry()  # stays empty: `render` has encoded each model already
        push_to_gateway(
            self._address, self._job, registry, timeout=TIMEOUT_SECONDS, handler=handler
        )


def lasting(exposition: bytes) -> bytes:
    """The lines of a text exposition that stay true when its server is gone.

    Samples of models, over all time. A label's text cannot pass for another label: its quotes are
    escaped. The gateway sets the label `job`; a sender's tag of that name is renamed, as Prometheus
    does at a scrape, since series that differ in it alone would have the whole push refused.
    """
    lines = exposition.split(b"\n")
    return b"".join(_without_job(line) + b"\n" for line in lines if _lasts(line))


def _without_job(line: bytes) -> bytes:
    return _JOB.sub(b'\\1exported_job="', line) if b'job="' in line else line


_JOB = re.compile(b'([{,])job="')


def _lasts(line: bytes) -> bool:
    if line.startswith(b"#"):
        return True
    sliding = line.startswith(b"feedback_") and b'window="' in line and b'window="all"' not in line
    return b'deployment_name="' in line and not sliding
