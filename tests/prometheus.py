"""promtool, and a real Prometheus that scrapes our servers, with the rules as they are applied."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from .servers_http import ROOT, free_port, until

MONITORING = ROOT / "knative" / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
DASHBOARDS = sorted(MONITORING.glob("*.json"))
SUBSTITUTES = {
    "namespace": "seldon|other",
    "deployment": ".+",
    "model": "classifier",
    "window": "5m",
    "score": "accuracy",
    "__range": "10m",
    "__range_s": "600",
    "__rate_interval": "1m",
}


def tool(name: str) -> str:
    """The path of a program of Debian's package prometheus."""
    path = shutil.which(name)
    if path is None:
        assert not os.environ.get("CI"), f"CI needs {name} (Debian's package prometheus)"
        pytest.skip(f"{name} is not installed (Debian's package prometheus)")
    return path


def promtool(directory: Path, *arguments: str, rules: Any = RULES) -> str:
    """What promtool says, with the rules in `directory` as rules.json; fails where it does."""
    (directory / "rules.json").write_text(json.dumps(rules))
    done = subprocess.run(
        [tool("promtool"), *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries(path: Path) -> dict[str, str]:
    """Every query of a dashboard, by panel and letter."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    }


def substituted(query: str) -> str:
    """A query as Grafana sends it; subqueries go by seconds, as this Prometheus scrapes."""
    for name, text in SUBSTITUTES.items():
        query = re.sub(rf"\${name}\b", text, query)
    assert "$" not in query, query
    return query.replace(":1m]", ":1s]")


class Prometheus:
    """Debian's prometheus, which scrapes our servers every 0.2 s as pods of changing names."""

    def __init__(self, directory: Path, rules: Any = RULES) -> None:
        self._directory = directory
        self._program = tool("prometheus")
        self.address = f"127.0.0.1:{free_port()}"
        self.scrape()
        (directory / "rules.json").write_text(json.dumps(rules))
        (directory / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "200ms", "evaluation_interval": "500ms"},
                    "rule_files": ["rules.json"],
                    "scrape_configs": [
                        {
                            "job_name": "feedback",
                            "scrape_timeout": "200ms",
                            "file_sd_configs": [
                                {"files": ["targets.json"], "refresh_interval": "300ms"}
                            ],
                        }
                    ],
                }
            )
        )
        with open(directory / "prometheus.log", "wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={directory}/prometheus.yml",
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )
        until(self._ready, 30)

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._directory / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=30):
                return True
        except OSError:
            return False

    def scrape(self, **pods: int) -> None:
        """Have it scrape these pods, by their ports, from now on."""
        targets = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"pod": pod}} for pod, port in pods.items()
        ]
        new = self._directory / "targets.new"
        new.write_text(json.dumps(targets))
        new.rename(self._directory / "targets.json")

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return self._result("query", query=query)

    def range(self, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of a range query."""
        return self._result(
            "query_range", query=query, start=str(start), end=str(end), step=str(step)
        )

    def _result(self, kind: str, **parameters: str) -> list[dict[str, Any]]:
        url = f"http://{self.address}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def number(self, query: str) -> float:
        """The value of the only series; NaN where there is none."""
        found = self.ask(query)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else float("nan")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(30)
