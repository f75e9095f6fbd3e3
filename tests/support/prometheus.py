"""Prometheus with the configuration that is shipped, its time made shorter where a test cannot
wait."""

import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.support.polling import until
from tests.support.processes import ROOT, Process, free_port

SHIPPED = ROOT / "deploy" / "prometheus"
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME_KEYS = ("scrape_interval", "evaluation_interval", "for", "interval")


def seconds(duration: str) -> float:
    """`1h30m` in seconds."""
    return sum(
        float(number) * _SECONDS[unit]
        for number, unit in re.findall(r"(\d+)(ms|s|m|h|d)", duration)
    )


def shortened(text: str, by: float) -> str:
    """Configuration or rules with every range (`[5m]`) and every time (`for: 2m`) divided by
    `by`. Names stay, so that `rate5m` is then the rate over less."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{round(seconds(found[2]) / by * 1000)}ms{found[3]}"

    text = re.sub(r"(\[)(\d+[a-z]+)(\])", shorter, text)
    return re.sub(
        rf"((?:{'|'.join(_TIME_KEYS)}): )(\d+[a-z]+)()$", shorter, text, flags=re.MULTILINE
    )


class Prometheus(Process):
    """Scrapes `targets` in the job `nexus`, with the shipped configuration and rules and its
    times divided by `faster`."""

    def __init__(self, directory: Path, *targets: str, faster: float = 1.0) -> None:
        self.faster = faster
        (directory / "rules").mkdir(parents=True, exist_ok=True)
        for file in (SHIPPED / "rules").glob("*.yml"):
            shutil.copy(file, directory / "rules")
            if faster != 1:
                (directory / "rules" / file.name).write_text(shortened(file.read_text(), faster))
        config = yaml.safe_load(shortened((SHIPPED / "prometheus.yml").read_text(), faster))
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": list(targets)}]
        (directory / "prometheus.yml").write_text(json.dumps(config))
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        # A series whose target gives it no more must not be seen for longer than its own windows
        # are.
        lookback = f"{round(300_000 / faster)}ms"
        super().__init__(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
                f"--query.lookback-delta={lookback}",
            ],
            log=directory / "prometheus.log",
        )
        until(lambda: self._get("/-/ready"), within_s=30)

    def _get(self, path: str, **params: Any) -> bytes:
        """A response; an AssertionError has what Prometheus says is wrong."""
        assert self.child.poll() is None, self.output()[-3000:]
        try:
            with urllib.request.urlopen(
                f"{self.base}{path}?{urllib.parse.urlencode(params)}", timeout=10
            ) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {params}: {error.read().decode()}") from None

    def _data(self, path: str, **params: Any) -> Any:
        return json.loads(self._get(path, **params))["data"]

    def result(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now, as Prometheus gives it."""
        return list(self._data("/api/v1/query", query=expression)["result"])

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Label values in the order of their names, the target's own left out → value."""
        return {
            tuple(
                value
                for name, value in sorted(entry["metric"].items())
                if name not in ("__name__", "instance", "job")
            ): float(entry["value"][1])
            for entry in self.result(expression)
        }

    def range(self, expression: str, *, last_s: float, step_s: float = 1.0) -> list[dict[str, Any]]:
        now = time.time()
        found = self._data(
            "/api/v1/query_range", query=expression, start=now - last_s, end=now, step=step_s
        )
        return list(found["result"])

    def alerts(self) -> dict[str, list[dict[str, Any]]]:
        """Name → alerts that are pending or firing now."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in self._data("/api/v1/alerts")["alerts"]:
            found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def firing(self) -> set[str]:
        return {
            name
            for name, alerts in self.alerts().items()
            if any(a["state"] == "firing" for a in alerts)
        }

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and last error."""
        return [rule for group in self._data("/api/v1/rules")["groups"] for rule in group["rules"]]
