"""What the tests of clients share: a server that asks a stand-in of the provider, and people to sign in as."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True)
class TwoServers:
    """Two servers on one database, of which the first one's generation worker runs all generations.

    Attributes:
        here: the first one.
        there: the other one.
    """

    here: RunningServer
    there: RunningServer

    @contextmanager
    def resting(self) -> Iterator[Callable[[], None]]:
        """Stop the generation worker; give what lets it go on before the end."""
        worker = self.here.stop_generation_worker()

        def resume() -> None:
            os.kill(worker, signal.SIGCONT)

        try:
            yield resume
        finally:
            resume()


@pytest.fixture(scope="session")
def two_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoServers]:
    """Two servers that draw by themselves."""
    folder = tmp_path_factory.mktemp("two-servers")
    # With two RPC workers, the generation worker is a process of its own.
    shared = {
        "PIXYPROXY_DATABASE_URL": f"sqlite:///{folder / 'pixyproxy.db'}",
        "PIXYPROXY_IMAGE_STORE": str(folder / "images"),
        "PIXYPROXY_WORKERS": "2",
    }
    with running_server(folder / "here", shared) as here, running_server(folder / "there", shared) as there:
        idle = there.stop_generation_worker()
        yield TwoServers(here, there)
        os.kill(idle, signal.SIGCONT)
