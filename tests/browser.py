"""Chromium without a window, by the DevTools protocol over a pipe: no library, no port.

    with Browser(tmp_path) as browser:
        page = browser.open("http://127.0.0.1:8080/", dark=True)
        assert page.trouble == []
        assert page("document.title") == "Models · feedback-metrics"

Protocol: https://chromedevtools.github.io/devtools-protocol/, messages end with a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

SECONDS = 60.0
"""How long Chromium may take for one answer, on a machine that is busy."""
PHONE = (360, 740)
DESKTOP = (1180, 900)


def chromium() -> str:
    """Path of the browser; skips the test without one, and fails it in CI."""
    found = shutil.which("chromium")
    if found is None:
        assert not os.environ.get("CI"), "CI needs Debian's package chromium"
        pytest.skip("chromium is not installed (Debian's package chromium)")
    return found


class Page:
    """One tab; what it asked for, and what it complained about."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        self.trouble: list[str] = []
        """Errors and warnings on the console, exceptions, requests that failed."""
        self.requests: list[str] = []
        """URLs of all that was asked for over the network."""

    def __call__(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression, awaited if it is a promise."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        return self._browser.send(method, parameters, self._session)

    def picture(self, path: Path, height: int = 0) -> None:
        """Write what the page looks like, from its top to `height` or its end, as PNG or WebP."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"]}
        kind = {"format": "webp", "quality": 80} if path.suffix == ".webp" else {"format": "png"}
        shot = self.send(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}, **kind
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def key(self, name: str, code: int) -> None:
        """Press and release one key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code)

    def close(self) -> None:
        """Close the tab."""
        self._browser.send("Target.closeTarget", {"targetId": self._target})

    def _hear(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Network.loadingFailed":
            self.trouble.append(f"failed: {told['errorText']} {told.get('blockedReason', '')}")
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.trouble.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.trouble.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.trouble.append(json.dumps(told["args"]))
        elif method == "Page.loadEventFired":
            self.loaded.set()

    loaded: threading.Event


def _high(descriptor: int) -> int:
    """The same open file under a number that is neither 3 nor 4."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return high


class Browser:
    """A Chromium process with a profile of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._answers: dict[int, Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        command = [
            chromium(),
            "--headless",
            "--no-sandbox",  # root, in a container
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._directory / 'profile'}",
            "about:blank",
        ]
        theirs, self._to = map(_high, os.pipe())
        self._from, ours = map(_high, os.pipe())
        with open(self._directory / "chromium.log", "wb") as log:
            self._process = subprocess.Popen(  # it reads from 3 and writes to 4
                ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", *command],
                stdout=log,
                stderr=log,
                pass_fds=(theirs, ours),
                start_new_session=True,
            )
        os.close(theirs)
        os.close(ours)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._listener.join(30)
        os.close(self._to)

    def open(
        self,
        url: str,
        dark: bool = False,
        size: tuple[int, int] = DESKTOP,
        script: bool = True,
    ) -> Page:
        """A new tab that has loaded `url`."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, target, session["sessionId"])
        page.loaded = threading.Event()
        self._pages[session["sessionId"]] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        page.send("Emulation.setScriptExecutionDisabled", value=not script)
        page.loaded.clear()
        page.send("Page.navigate", url=url)
        assert page.loaded.wait(SECONDS), f"{url} does not load"
        return page

    def send(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        number = self._number
        told: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            told["sessionId"] = session
        answer = self._answers[number] = Queue(1)
        data = json.dumps(told).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        try:
            found = answer.get(timeout=SECONDS)
        except Empty:
            log = (self._directory / "chromium.log").read_text(errors="replace")[-2000:]
            raise AssertionError(f"Chromium does not answer {method}:\n{log}") from None
        assert "error" not in found, (method, found)
        result: dict[str, Any] = found["result"]
        return result

    def _listen(self) -> None:
        with open(self._from, "rb", buffering=0) as pipe:
            rest = b""
            while part := pipe.read(1 << 16):
                *messages, rest = (rest + part).split(b"\0")
                for message in messages:
                    self._told(json.loads(message))

    def _told(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
        elif page := self._pages.get(message.get("sessionId", "")):
            page._hear(message["method"], message["params"])
