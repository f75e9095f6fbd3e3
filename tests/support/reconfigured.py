"""A gateway that runs already, under a configuration of a test's own: it starts in a tenth of the
time."""

import os
import signal
from typing import Any

from tests.support.metrics import Scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

COUNTS = ("_total", "_count", "_sum", "_bucket")
GAUGE = "nexus_backends_total"  # named like a counter


class Reconfigured:
    """Shows counters and lines of the log since the gateway took the configuration.

    Every backend before it is forgotten first, so that none keeps its circuit.
    """

    def __init__(self, gateway: Gateway, idle: Demo, config: str) -> None:
        """`idle`: the one backend of the gateway at other times, with a name that no test uses."""
        self._gateway, self.port = gateway, gateway.port
        self._reload(backend_toml(idle))
        self._reload(config)
        self._before, self._lines = gateway.settled(), len(gateway.lines())

    def _reload(self, config: str) -> None:
        gateway, reloads = self._gateway, len(self._gateway.lines("configuration reloaded"))
        gateway.write(config)
        os.kill(gateway.health_pid(), signal.SIGHUP)
        until(lambda: len(gateway.lines("configuration reloaded")) > reloads)
        count = config.count("[[backends]]")

        def all_healthy() -> bool:
            found = gateway.scrape()
            healthy = found.value("nexus_backends_healthy")
            return healthy == found.value("nexus_backends_total") == count

        until(all_healthy)

    def _since(self, found: Scrape) -> Scrape:
        before = self._before.samples
        found.samples = {
            sample: value - before.get(sample, 0.0)
            if sample[0].endswith(COUNTS) and sample[0] != GAUGE
            else value
            for sample, value in found.samples.items()
        }
        return found

    def scrape(self) -> Scrape:
        return self._since(self._gateway.scrape())

    def settled(self) -> Scrape:
        return self._since(self._gateway.settled())

    def stats(self) -> dict[str, Any]:
        return self._gateway.stats()

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self._gateway.lines()[self._lines :] if line["event"] == event]
