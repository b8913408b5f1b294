"""A provider's stand-in, and generators that ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pixyproxy.generation.image_hosts import ImageHosts
from pixyproxy.generation.openai.client import OpenAIGenerator, make_client
from tests.support.openai_stand_in import RunningStandIn, start_stand_in

TIMEOUT = 30.0
SHORT_TIMEOUT = 0.4


@pytest.fixture(scope="module")
def stand_in() -> Iterator[RunningStandIn]:
    with start_stand_in() as running:
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what must have no effect, and keep a proxy of this machine out of the way."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-environment")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-key-of-the-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-environment")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-of-the-environment")


@pytest.fixture
def generator(stand_in: RunningStandIn) -> Iterator[OpenAIGenerator]:
    yield from open_generator(stand_in.base_url)


@pytest.fixture
def short_timeout_generator(stand_in: RunningStandIn) -> Iterator[OpenAIGenerator]:
    yield from open_generator(stand_in.base_url, timeout=SHORT_TIMEOUT)


def open_generator(
    base_url: str,
    *,
    api_key: str = "stand-in-key",
    organization: str | None = None,
    project: str | None = None,
    timeout: float = TIMEOUT,
    always_streams: bool = False,
    image_hosts: str = "",
) -> Iterator[OpenAIGenerator]:
    client = make_client(api_key, base_url, organization, project, timeout)
    generator = OpenAIGenerator(client, always_streams=always_streams, image_hosts=ImageHosts.parse(image_hosts))
    yield generator
    generator.close()
