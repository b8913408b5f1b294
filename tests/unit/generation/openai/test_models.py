"""The models that the provider's account offers: as OpenAI, gateways and servers with its API list them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pixyproxy.core.exceptions import (
    ProviderError,
    ProviderMisconfiguredError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from pixyproxy.generation.openai.client import OpenAIGenerator, ProviderModel
from tests.support.openai_stand_in import SHUTDOWN_DATES
from tests.unit.generation.openai.conftest import SHORT_TIMEOUT, open_generator


@contextmanager
def answering(status: int, body: bytes, content_type: str = "application/json") -> Iterator[str]:
    """Run a server that answers every request so; yield the API's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def listed(status: int, body: bytes, content_type: str = "application/json") -> list[ProviderModel]:
    with answering(status, body, content_type) as address:
        [models] = [generator.models() for generator in open_generator(address)]
    return models


def failure(status: int, body: bytes, content_type: str = "application/json") -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        listed(status, body, content_type)
    assert "stand-in-key" not in str(caught.value)
    return caught.value


def test_all_models_are_listed_with_the_dates_of_their_end(generator: OpenAIGenerator) -> None:
    assert generator.models() == [ProviderModel(name, date) for name, date in sorted(SHUTDOWN_DATES.items())]


def test_a_gateway_s_list_lacks_fields() -> None:
    """LiteLLM's has neither dates nor all that the package's types have; others list more than models."""
    body = {
        "data": [
            {"id": "gpt-image-2", "object": "model", "created": 1677610602, "owned_by": "openai"},
            {"id": "flux"},
            {"id": "b", "shutdown_date": 20270101},
            {"id": "a", "shutdown_date": "2027-01-01", "more": [1]},
            {"name": "nameless"},
            {"id": 7},
            "text",
            None,
        ]
    }
    assert listed(200, json.dumps(body).encode()) == [
        ProviderModel("a", "2027-01-01"),
        ProviderModel("b", None),
        ProviderModel("flux", None),
        ProviderModel("gpt-image-2", None),
    ]


def test_an_account_without_models_has_an_empty_list() -> None:
    assert listed(200, b'{"object": "list", "data": []}') == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b'{"data": "gpt-image-2"}', "application/json"),
        (b'{"data": {"id": "gpt-image-2"}}', "application/json"),
        (b"<html>hello</html>", "text/html"),
    ],
)
def test_what_is_no_list_cannot_be_read(body: bytes, content_type: str) -> None:
    error = failure(200, body, content_type)
    assert type(error) is ProviderUnavailableError
    assert error.message == "The image provider's list of models cannot be read."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, ProviderMisconfiguredError),
        (403, ProviderMisconfiguredError),
        (404, ProviderMisconfiguredError),
        (307, ProviderMisconfiguredError),
        (429, ProviderRateLimitedError),
        (503, ProviderUnavailableError),
    ],
)
def test_a_refusal_is_told_plainly(status: int, kind: type[ProviderError], caplog: pytest.LogCaptureFixture) -> None:
    error = failure(status, b'{"error": {"message": "Not with the key stand-in-key"}}')
    assert type(error) is kind
    assert f"status {status}" in caplog.text
    assert "stand-in-key" not in caplog.text


def test_an_address_without_a_list_is_not_a_missing_model() -> None:
    assert failure(404, b"").message == "The image provider's address has no list of models."


def test_a_provider_that_is_away_is_told_from_one_that_is_slow() -> None:
    for generator in open_generator("http://127.0.0.1:9/v1"):
        with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
            generator.models()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        for generator in open_generator(address, timeout=SHORT_TIMEOUT):
            with pytest.raises(ProviderTimeoutError, match="took too long"):
                generator.models()


def test_a_list_that_breaks_off_is_no_unknown_outcome() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def break_off() -> None:
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.close()

        thread = threading.Thread(target=break_off)
        thread.start()
        for generator in open_generator(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"):
            with pytest.raises(ProviderUnavailableError, match="cannot be read"):
                generator.models()
        thread.join()
