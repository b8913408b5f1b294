"""Servers that the tests of a whole run share, so that few of them wait for a start of their own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pixyproxy.core.fields import UserClass
from tests.support.client_kinds import make_client
from tests.support.database_servers import fresh_database
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn, start_stand_in
from tests.support.servers import ANYBODY, Login, Metadata, RunningServer, running_server

__all__ = ["make_client"]

# Tests of other things may fail to sign in as often as they like.
_GENEROUS = {"PIXYPROXY_MAX_FAILED_SIGN_INS": "10000"}


@dataclass(frozen=True)
class People:
    """Users of a shared server; none of them is used by tests that count what a user has."""

    ann: Login
    bob: Login
    root: Login

    def metadata(self, who: str) -> Metadata:
        """What to send along as "ann", "bob" or "root", or as "anybody"."""
        logins = {"ann": self.ann, "bob": self.bob, "root": self.root}
        return logins[who].metadata if who in logins else ANYBODY


def _people(server: RunningServer) -> People:
    return People(server.new_login(), server.new_login(), server.new_login(UserClass.ADMIN))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with SQLite that draws by itself."""
    with running_server(tmp_path_factory.mktemp("server"), _GENEROUS) as running:
        yield running


@pytest.fixture(scope="session")
def people(server: RunningServer) -> People:
    """Users of `server`."""
    return _people(server)


@pytest.fixture(scope="session")
def stand_in() -> Iterator[RunningStandIn]:
    """A stand-in of the provider."""
    with start_stand_in() as running:
        yield running


@pytest.fixture(scope="session")
def provider_server(tmp_path_factory: pytest.TempPathFactory, stand_in: RunningStandIn) -> Iterator[RunningServer]:
    """A server with SQLite that asks the stand-in for its images."""
    with running_server(tmp_path_factory.mktemp("provider-server"), _GENEROUS | asking(stand_in)) as running:
        yield running


@pytest.fixture(scope="session")
def artists(provider_server: RunningServer) -> People:
    """Users of `provider_server`."""
    return _people(provider_server)


@pytest.fixture(scope="session")
def short_timeout_server(tmp_path_factory: pytest.TempPathFactory, stand_in: RunningStandIn) -> Iterator[RunningServer]:
    """A server like `provider_server` that waits three seconds for the provider: for providers that never answer."""
    settings = asking(stand_in) | {"PIXYPROXY_PROVIDER_TIMEOUT": "3"}
    with running_server(tmp_path_factory.mktemp("short-timeout-server"), settings) as running:
        yield running


@pytest.fixture
def artist(provider_server: RunningServer, artists: People) -> ImageClient:
    """Somebody who has images made by the provider, which a test may fail four times in a row."""
    client = ImageClient(provider_server, artists.ann)
    reassure(client)
    return client


@pytest.fixture
def prompt() -> str:
    """A prompt that no other test uses."""
    return f"a lighthouse {secrets.token_hex(8)}"


def reassure(client: ImageClient) -> None:
    """Show a server that its provider works: after five failures in a row it would not ask it for a while."""
    client.create("something that works")


def asking(stand_in: RunningStandIn) -> dict[str, str]:
    """The settings of a server that asks the stand-in."""
    return {"OPENAI_API_KEY": stand_in.api_key, "OPENAI_BASE_URL": stand_in.base_url}


@pytest.fixture(scope="session", params=["sqlite", "mysql", "mariadb"])
def any_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on each kind of database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("server")
        return
    with (
        fresh_database(request.getfixturevalue(f"{request.param}_server")) as url,
        running_server(tmp_path_factory.mktemp(request.param), {"PIXYPROXY_DATABASE_URL": url} | _GENEROUS) as running,
    ):
        yield running
