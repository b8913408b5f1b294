"""The dashboard and the alerts speak of what a running server shows."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.resource.statuses import RULES
from tests.support.certificates import Authority, secure_channel
from tests.support.image_client import ImageClient
from tests.support.metrics import METRICS_ON, Scrape, scrape
from tests.support.openai_stand_in import start_stand_in
from tests.support.promtool import promtool_program
from tests.support.servers import image_stub, running_server

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
RULE_LIST: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/pixyproxy.json").read_text())
EXPRESSIONS = [rule["expr"] for rule in RULE_LIST] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """What a server shows to which everything has happened that is counted."""
    folder = tmp_path_factory.mktemp("monitored")
    authority = Authority()
    with start_stand_in() as stand_in:
        settings = METRICS_ON | authority.write(folder).settings
        settings |= {"OPENAI_API_KEY": stand_in.api_key, "OPENAI_BASE_URL": stand_in.base_url}
        settings |= {"PIXYPROXY_IMAGES_PER_MINUTE": "100"}
        with running_server(folder / "server", settings) as server, secure_channel(server, authority.pem) as channel:
            client = ImageClient(server, server.admin)
            client.stub = image_stub(channel)
            made = client.create("a lighthouse [[fault:503:times=1:retry-after-ms=1]]")
            client.content(made.guid)
            server.image_file(made.guid).unlink()
            client.refused(pb.GetImageContentRequest(guid=made.guid))
            with closing(sqlite3.connect(server.folder / "pixyproxy.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                client.refused(pb.UpdateImageRequest(guid=made.guid, tags=["locked out"]))
            return scrape(server)


def test_every_metric_that_is_named_is_shown(shown: Scrape) -> None:
    named = set(re.findall(r"\b(?:pixyproxy|grpc_server|process)_[a-z_]+\b", " ".join(EXPRESSIONS)))
    assert len(named) > 20
    assert named - shown.names == set()


def test_every_label_that_is_named_is_shown(shown: Scrape) -> None:
    added_by_prometheus = {"job", "instance"}
    known = {label for sample in shown.samples for label in sample.labels} | added_by_prometheus
    for expression in EXPRESSIONS:
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            assert set(labels.replace(" ", "").split(",")) <= known, expression
        assert set(re.findall(r"[{,]\s*(\w+)=~?\"", expression)) <= known, expression


def test_every_reason_and_error_that_is_named_is_one() -> None:
    reasons = {rule.reason for rule in RULES.values()}
    for values in re.findall(r'reason=~?"([^"]+)"', " ".join(EXPRESSIONS)):
        assert set(values.split("|")) <= reasons


def test_what_is_alerted_on_is_shown_before_it_happens(shown: Scrape) -> None:
    """Of a number that appears as 1, Prometheus sees no increase."""
    for expression in EXPRESSIONS:
        for values in re.findall(r'increase\(pixyproxy_errors_total\{reason=~?"([^"]+)"', expression):
            assert set(values.split("|")) <= shown.labels("pixyproxy_errors_total", "reason")
        for values in re.findall(r'increase\(pixyproxy_provider_requests_total\{outcome=~?"([^"]+)"', expression):
            assert set(values.split("|")) <= shown.labels("pixyproxy_provider_requests_total", "outcome")
    assert shown.total("pixyproxy_unknown_outcomes_total") == 0


def test_alerts_say_what_is_wrong() -> None:
    assert len({rule["alert"] for rule in RULE_LIST}) == len(RULE_LIST)
    for rule in RULE_LIST:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_document_says_what_to_do_about_every_alert() -> None:
    document = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `(PixyProxy\w+)` \| (\w+) \| \S", document, flags=re.MULTILINE)
    assert sorted(described) == sorted((rule["alert"], rule["labels"]["severity"]) for rule in RULE_LIST)


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_promtool_takes_the_alerts() -> None:
    subprocess.run([promtool_program(), "check", "rules", str(ALERTS)], check=True)
