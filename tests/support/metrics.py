"""What a server shows to Prometheus."""

from __future__ import annotations

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_TIMEOUT = 30.0
_PLACE = re.compile(r"Serving metrics at (http://\S+)\.$", re.MULTILINE)

METRICS_ON = {"PIXYPROXY_METRICS_LISTEN": "127.0.0.1:0"}


class Scrape:
    """All samples at one moment."""

    def __init__(self, text: str) -> None:
        """Read Prometheus's text format."""
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {sample.name for sample in self.samples}

    def total(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that have these labels; 0 where there are none."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label has."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}


def metrics_url(server: RunningServer) -> str:
    """Where a server says that its metrics are, maybe a moment after it serves: lines are gathered before a write."""
    return wait_until(lambda: _PLACE.search(server.log), _TIMEOUT, "the line that says where the metrics are")[1]


def scrape(server: RunningServer) -> Scrape:
    """Ask a server as Prometheus does."""
    return scrape_url(metrics_url(server))


def scrape_url(url: str) -> Scrape:
    """Ask an address as Prometheus does."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return Scrape(answer.read().decode())
