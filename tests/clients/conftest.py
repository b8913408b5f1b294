"""What the tests of clients share: a server that asks a stand-in of the provider, and people to sign in as."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.openai_stand_in import start_stand_in
from tests.support.servers import RunningServer, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with SQLite whose provider goes wrong where a prompt says so."""
    with start_stand_in() as stand_in:
        settings = {"OPENAI_API_KEY": stand_in.api_key, "OPENAI_BASE_URL": stand_in.base_url}
        with running_server(tmp_path_factory.mktemp("server"), settings) as running:
            yield running
