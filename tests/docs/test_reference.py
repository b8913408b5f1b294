"""The reference in docs/ says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.rpc import code_pb2
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_download_service_pb2 as dpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.core import fields, models
from pixyproxy.resource import statuses
from pixyproxy.settings import describe_settings

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()


def test_every_setting_is_listed_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*) \|$", SETTINGS, flags=re.MULTILINE)

    assert rows == [
        (variable, f"`{default}`" if default else "", description)
        for variable, default, description in describe_settings()
    ]


def test_every_rpc_is_described() -> None:
    for method in pb.DESCRIPTOR.services_by_name["ImageService"].methods:
        assert f"\n## {method.name}\n" in API
    for file in (dpb, gpb, upb):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"\n### {method.name}\n" in API


def test_every_state_of_a_generation_is_described() -> None:
    described = re.findall(
        r"^\| `([A-Z_]+)` \|", API[API.index("\n### States\n") : API.index("\n### CreateGeneration\n")], re.M
    )

    assert [f"GENERATION_STATE_{state}" for state in described] == gpb.GenerationState.keys()[1:]


def test_every_reason_is_listed_with_its_code() -> None:
    table = API[API.index("\n## Errors\n") :]
    listed = set(re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|", table, flags=re.MULTILINE))

    assert listed == {(code_pb2.Code.Name(rule.code), rule.reason) for rule in statuses.RULES.values()}


@pytest.mark.parametrize(
    "limit",
    [
        fields.MAX_PROMPT_LENGTH,
        fields.MAX_FILENAME_LENGTH,
        fields.MAX_TAGS,
        fields.MAX_TAG_LENGTH,
        fields.MAX_SEARCH_LENGTH,
        fields.MAX_SEARCH_TERMS,
        models.DEFAULT_PAGE_SIZE,
        models.MAX_PAGE_SIZE,
    ],
)
def test_limits_are_told_here_and_in_the_proto(limit: int) -> None:
    proto = (ROOT / "protos/pixyproxy/v1/image_service.proto").read_text()

    assert re.search(rf"\b{limit:,}\b", API)
    assert re.search(rf"\b{limit:,}\b", proto)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text()
    pages = [page for page in PAGES if page.parent.name == "decisions" and page.name != "README.md"]

    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", index, flags=re.MULTILINE)
    headings = [
        (heading, f"{page.name}#{anchor}")
        for page in pages
        for heading, anchor in zip(
            re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE), anchors(page)[1:], strict=True
        )
    ]
    assert sorted(listed) == sorted(headings)
