"""The whole loop on one machine: `make demo-broker`.

A model's feedback goes to a broker; a Trigger delivers it to the function, which sleeps until the
first event and again in the middle; its metrics events come back as replies, and a second Trigger,
on `state`, delivers alerts to a consumer that prints them. A bad event ends as a dead letter.
Exit status 0: every event counted once, and the alerts came as they should.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.activator import Activator  # noqa: E402  run as a file
from examples.broker import Broker, Delivery, Event, Trigger  # noqa: E402

FEEDBACK = "io.seldon.serving.feedback"
METRICS = f"{FEEDBACK}.metrics"
RULES = """
models:
  "*": {alerts: [{name: accuracy-low, score: accuracy, window: 5m, below: 0.8, rows: 20}]}
"""
PHASES = (("well", 40, 0.95), ("badly", 40, 0.3), ("well again", 260, 0.98))
"""How the model does, of how many events, and how often it is right."""


class Consumer:
    """An HTTP consumer of events that keeps them and tells of each."""

    def __init__(self, tell: Callable[[dict[str, str], Any], None]) -> None:
        self.events: list[dict[str, str]] = []
        consumer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                named = {name.lower()[3:]: text for name, text in self.headers.items()}
                consumer.events.append(named)
                tell(named, body)
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


def show_alert(attributes: dict[str, str], body: Any) -> None:
    """One line for an alert."""
    view = json.loads(body)
    (rule,) = view["alerts"]
    print(
        f"  ALERT {attributes['rule']} is {attributes['state']}: {attributes['score']} of "
        f"{attributes['subject']} is {rule['value']:.3f} over {rule['window']}"
    )


def show_dead_letter(attributes: dict[str, str], body: Any) -> None:
    """One line for a dead letter."""
    print(f"  DEAD LETTER {attributes['id']}: HTTP {attributes['knativeerrorcode']}")


def event(truth: Any, predicted: Any) -> Event:
    """One prediction and its truth, as Seldon's executor sends them."""
    data = {
        "response": {"data": {"ndarray": [predicted]}},
        "truth": {"data": {"ndarray": [truth]}},
    }
    attributes = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "http://iris-default.seldon:8000/",
        "type": FEEDBACK,
        "datacontenttype": "application/json",
        "namespace": "seldon",
        "inferenceservicename": "iris",
        "endpoint": "default",
        "modelid": "classifier",
    }
    return Event(attributes, json.dumps(data).encode())


def sleep(function: Activator, broker: Broker) -> None:
    """Wait until the function is at zero."""
    print("  no events for a moment: the function gets SIGTERM ...", end=" ", flush=True)
    if not function.wait_for_zero(60):
        sys.exit("it did not end")
    print(f"asleep, exit status {function.exit_codes[-1]}")


def play(directory: Path) -> bool:
    """All of it, told as it goes; whether it went as it should."""
    (directory / "models.yaml").write_text(RULES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    not_ours = ("FEEDBACK_", "SELDON_", "PREDICT", "K_", "WEB_CONCURRENCY")
    env = {name: text for name, text in os.environ.items() if not name.startswith(not_ours)}
    env |= {
        "PORT": str(port),
        "HOST": "127.0.0.1",
        "LOG_LEVEL": "ERROR",
        "FEEDBACK_STORE": f"sqlite:///{directory}/feedback.db",
        "FEEDBACK_MODELS": f"{directory}/models.yaml",
    }
    command = [sys.executable, "-m", "metrics", "serve"]
    function = Activator(port, command, idle=1.0, env=env)
    alerts, dead = Consumer(show_alert), Consumer(show_dead_letter)
    metrics = Consumer(lambda attributes, body: None)
    delivery = Delivery(retry=10, backoff_delay="PT0.2S", timeout="PT60S", dead_letter=dead.url)
    triggers = [
        Trigger("feedback", function.url, {"type": FEEDBACK}, delivery=delivery),
        Trigger("metrics", metrics.url, {"type": METRICS}),
        Trigger("alerts", alerts.url, {"type": f"{METRICS}.alert"}),
    ]
    chance = random.Random(1)
    sent = 0
    with Broker(triggers, activators=[function]) as broker:
        print(f"A broker with {len(triggers)} Triggers; the function is at zero")
        for how, events, share in PHASES:
            print(f"{events} events of a model that does {how}")
            for _ in range(events):
                truth = chance.randrange(3)
                right = chance.random() < share
                produced = event(truth, truth if right else (truth + 1) % 3)
                for _ in range(1 + (chance.random() < 0.1)):  # a producer sends some twice
                    broker.publish(produced)
                sent += 1
            sleep(function, broker)
        print("One event that can never be counted")
        broker.publish(event("no such", [0.2, 0.9]))
        found = broker.outcomes("feedback")
        starts = function.starts
    for consumer in (alerts, dead, metrics):
        consumer.close()
    ids = {each["id"] for each in metrics.events} | {each["id"] for each in alerts.events}
    retried = sum(outcome.calls > 1 for outcome in found)
    print(
        f"{sent} events in {len(found) - 1} deliveries, {retried} of them retried: "
        f"{len(ids)} replies, {len(metrics.events)} of them metrics; {starts} starts from zero"
    )
    states = [each["state"] for each in alerts.events]
    unique = list(dict.fromkeys((each["id"], each["state"]) for each in alerts.events))
    return (
        len(ids) == sent
        and [state for _, state in unique] == ["firing", "resolved"]
        and set(states) == {"firing", "resolved"}
        and len(dead.events) == 1
        and starts >= len(PHASES)
    )


def main() -> int:
    """Exit status 0 if all went as it should."""
    os.chdir(ROOT)
    directory = Path("state", "demo-broker", uuid4().hex[:8]).absolute()
    directory.mkdir(parents=True)
    as_it_should = play(directory)
    print("All as it should be." if as_it_should else "NOT AS IT SHOULD BE.", end=" ")
    print(f"State stays in {directory.relative_to(ROOT)}")
    return 0 if as_it_should else 1


if __name__ == "__main__":
    sys.exit(main())
