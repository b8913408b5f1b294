from __future__ import annotations

import base64
import json
import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from pixyproxy.core.exceptions import ProviderError, UnreadableAnswerError
from pixyproxy.generation.image_hosts import ImageHosts
from pixyproxy.generation.interfaces import GenerationRequest
from pixyproxy.generation.openai import fetching
from pixyproxy.generation.openai.client import OpenAIGenerator, make_client
from pixyproxy.generation.openai.deadline import DEADLINE_HOOKS
from pixyproxy.generation.openai.fetching import FetchError, ImageFetcher
from tests.support.image_urls import OTHER_FILES, SECRET, path_for, picture_for
from tests.support.openai_stand_in import RunningStandIn, start_stand_in
from tests.unit.generation.openai.conftest import SHORT_TIMEOUT, TIMEOUT, open_generator

PAUSES = (0.01, 0.01)
ATTEMPTS = len(PAUSES) + 1


@pytest.fixture(scope="module")
def foreign() -> Iterator[RunningStandIn]:
    """Another host than the provider's."""
    with start_stand_in() as running:
        yield running


@pytest.fixture
def prompt() -> str:
    return f"an otter {uuid.uuid4()}"


def url_at(server: RunningStandIn, prompt: str, **options: str) -> str:
    return f"http://{server.address}{path_for(prompt, options)}"


def fetch(
    provider: RunningStandIn,
    url: str,
    hosts: str = "",
    *,
    timeout: float = TIMEOUT,
    max_bytes: int = 1_000_000,
    pauses: tuple[float, ...] = PAUSES,
) -> bytes:
    with closing(make_client(provider.api_key, provider.base_url, None, None, timeout)) as client:
        return ImageFetcher(client, ImageHosts.parse(hosts), max_bytes=max_bytes, pauses=pauses).fetch(url)


def refusal(provider: RunningStandIn, url: str, hosts: str = "", **options: Any) -> str:
    """Return why an image cannot be fetched, which must have nothing of the URL but its host."""
    with pytest.raises(FetchError) as caught:
        fetch(provider, url, hosts, **options)
    message = str(caught.value)
    assert SECRET not in message
    assert "/images" not in message
    return message


def headers_of(server: RunningStandIn, prompt: str) -> dict[str, str]:
    [headers] = server.fetches(prompt)["headers"]
    return {name.lower(): value for name, value in headers.items()}


# --- The provider's own origin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "bytes", "compressed"])
def test_an_image_comes_from_the_provider_itself(stand_in: RunningStandIn, prompt: str, answer: str) -> None:
    assert fetch(stand_in, url_at(stand_in, prompt, get=answer)) == picture_for(prompt)
    assert stand_in.fetches(prompt)["count"] == 1


def test_the_provider_s_own_origin_gets_the_key_and_the_headers_of_the_operator(
    stand_in: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-gateway: ours")
    fetch(stand_in, url_at(stand_in, prompt))
    headers = headers_of(stand_in, prompt)
    assert headers["authorization"] == "Bearer stand-in-key"
    assert headers["x-gateway"] == "ours"
    assert headers["accept"] == "*/*"
    assert "content-type" not in headers


def test_a_header_of_the_operator_takes_the_place_of_the_key(
    stand_in: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: Basic abc")
    fetch(stand_in, url_at(stand_in, prompt))
    assert headers_of(stand_in, prompt)["authorization"] == "Basic abc"


def test_the_scheme_and_the_host_are_compared_without_case(stand_in: RunningStandIn, prompt: str) -> None:
    _, port = stand_in.address.split(":")
    with closing(make_client("key", f"http://LocalHost:{port}/v1", None, None, TIMEOUT)) as client:
        fetcher = ImageFetcher(client, ImageHosts(), max_bytes=1_000_000)
        assert fetcher.fetch(f"HTTP://LOCALHOST:{port}{path_for(prompt, {})}") == picture_for(prompt)


# --- URLs that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://{host}:{port}/images/x",
        "http://{host}:1/images/x",
        "http://{host}/images/x",
        "http://{host}.:{port}/images/x",
        "http://localhost:{port}/images/x",
        "http://2130706433:{port}/images/x",
        "http://0x7f.0.0.1:{port}/images/x",
        "http://127.1:{port}/images/x",
        "http://[::ffff:127.0.0.1]:{port}/images/x",
        "http://[::1]:{port}/images/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://{host}:{port}@169.254.169.254/images/x",
        "http://169.254.169.254\\@{host}:{port}/images/x",
        "http://{host}:{port}%2f@169.254.169.254/images/x",
    ],
)
def test_no_other_origin_is_asked(stand_in: RunningStandIn, url: str) -> None:
    host, port = stand_in.address.split(":")
    said = refusal(stand_in, url.format(host=host, port=port))
    assert "PIXYPROXY_PROVIDER_IMAGE_HOSTS" in said or "credentials" in said


@pytest.mark.parametrize(
    "url",
    [
        "http://user:{secret}@{address}/x",
        "http://user@{address}/x",
        "http://:{secret}@{address}/x",
        "http://@{address}@/x",
    ],
)
def test_a_url_with_credentials_is_refused(stand_in: RunningStandIn, url: str) -> None:
    said = refusal(stand_in, url.format(address=stand_in.address, secret=SECRET))
    assert "credentials" in said or "invalid" in said


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://{address}/x", "scheme"),
        ("gopher://{address}/x", "scheme"),
        ("file://{address}/etc/passwd", "scheme"),
        ("file:///etc/passwd", "no host"),
        ("/images/x", "no host"),
        ("//{address}/images/x", "no host"),
        ("http:///x", "no host"),
        ("http://[::1/x", "invalid"),
        ("http://{address}/\n", "invalid"),
        ("http://999.1.1.1/", "invalid"),
        ("http://{address}/" + "x" * 70_000, "invalid"),
        ("javascript:alert(1)", "no host"),
    ],
)
def test_what_is_no_url_of_a_host_is_refused(stand_in: RunningStandIn, url: str, why: str) -> None:
    assert why in refusal(stand_in, url.format(address=stand_in.address))


def test_the_refused_host_is_named(stand_in: RunningStandIn) -> None:
    said = refusal(stand_in, f"https://images.example.com/x?sig={SECRET}")
    assert "images.example.com, port 443" in said


# --- Redirects and other answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["redirect", "redirect_back"])
def test_a_redirect_is_not_followed(stand_in: RunningStandIn, prompt: str, answer: str) -> None:
    assert "status 302" in refusal(stand_in, url_at(stand_in, prompt, get=answer))
    assert stand_in.fetches(prompt)["count"] == 1


@pytest.mark.parametrize("status", ["204", "400", "401", "403", "404", "410", "428"])
def test_a_refusal_is_final(stand_in: RunningStandIn, prompt: str, status: str) -> None:
    assert f"127.0.0.1 answered with status {status}" in refusal(stand_in, url_at(stand_in, prompt, get=status))
    assert stand_in.fetches(prompt)["count"] == 1


@pytest.mark.parametrize("failure", ["429", "500", "502", "503", "599", "drop", "cut"])
def test_a_temporary_failure_is_repeated(stand_in: RunningStandIn, prompt: str, failure: str) -> None:
    assert fetch(stand_in, url_at(stand_in, prompt, get=failure, fails="2")) == picture_for(prompt)
    assert stand_in.fetches(prompt)["count"] == 3


@pytest.mark.parametrize("failure", ["429", "500", "drop", "cut"])
def test_a_failure_that_stays_is_given_up(
    stand_in: RunningStandIn, prompt: str, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pixyproxy")
    assert "127.0.0.1" in refusal(stand_in, url_at(stand_in, prompt, get=failure))
    assert stand_in.fetches(prompt)["count"] == ATTEMPTS
    said = [record.getMessage() for record in caplog.records if record.name.startswith("pixyproxy")]
    assert [line[:9] for line in said] == ["Attempt 1", "Attempt 2"]
    assert not [line for line in said if SECRET in line]


def test_what_is_no_http_is_not_quoted(stand_in: RunningStandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        port = listener.getsockname()[1]

        def answer() -> None:
            for _ in range(ATTEMPTS):
                with listener.accept()[0] as connection:
                    connection.recv(10_000)
                    connection.sendall(f"{SECRET}\r\n\r\n".encode())

        answering = pool.submit(answer)
        said = refusal(stand_in, f"http://127.0.0.1:{port}/x", f"127.0.0.1:{port}")
        answering.result()
    assert "127.0.0.1: RemoteProtocolError" in said
    assert SECRET not in said


def test_attempts_are_paused(stand_in: RunningStandIn, prompt: str) -> None:
    started = time.monotonic()
    refusal(stand_in, url_at(stand_in, prompt, get="503"), pauses=(0.3, 0.2))
    assert time.monotonic() - started >= 0.5


def test_no_pause_goes_beyond_the_timeout(stand_in: RunningStandIn, prompt: str) -> None:
    started = time.monotonic()
    refusal(stand_in, url_at(stand_in, prompt, get="503"), timeout=5.0, pauses=(0.01, 5.0, 0.01))
    assert time.monotonic() - started < 4
    assert stand_in.fetches(prompt)["count"] == 2


def test_by_default_there_are_seven_attempts_within_half_a_minute() -> None:
    assert len(fetching._PAUSES) == 6
    assert 30 <= sum(fetching._PAUSES) <= 40


@pytest.mark.parametrize("answer", ["endless", "hang"])
def test_a_fetch_ends_within_the_timeout(stand_in: RunningStandIn, prompt: str, answer: str) -> None:
    started = time.monotonic()
    assert "Timeout" in refusal(stand_in, url_at(stand_in, prompt, get=answer), timeout=SHORT_TIMEOUT)
    assert time.monotonic() - started < 10 * SHORT_TIMEOUT
    assert stand_in.fetches(prompt)["count"] == 1


def test_the_timeout_is_that_of_all_attempts_together(stand_in: RunningStandIn, prompt: str) -> None:
    started = time.monotonic()
    refusal(stand_in, url_at(stand_in, prompt, get="503"), timeout=2.5, pauses=(0.75,) * 100)
    assert time.monotonic() - started < 10
    assert 2 <= stand_in.fetches(prompt)["count"] <= 4


@pytest.mark.parametrize(("timeout", "connect", "read"), [(600.0, 10.0, 30.0), (20.0, 10.0, 20.0), (5.0, 5.0, 5.0)])
def test_no_step_waits_longer_than_the_timeout(
    stand_in: RunningStandIn,
    prompt: str,
    monkeypatch: pytest.MonkeyPatch,
    timeout: float,
    connect: float,
    read: float,
) -> None:
    used: list[httpx2.Timeout] = []
    remaining: list[float] = []
    stream = httpx2.Client.stream

    def record(client: Any, *arguments: Any, **options: Any) -> Any:
        used.append(client.timeout)
        remaining.append(options["extensions"]["deadline"] - time.monotonic())
        return stream(client, *arguments, **options)

    monkeypatch.setattr(httpx2.Client, "stream", record)
    fetch(stand_in, url_at(stand_in, prompt), timeout=timeout)
    assert used[0].connect == pytest.approx(connect, abs=0.5)
    assert used[0].read == pytest.approx(read, abs=0.5)
    # A slow body may take longer than one read.
    assert remaining[0] == pytest.approx(timeout, abs=0.5)


@pytest.mark.parametrize("answer", ["10gb", "large"])
def test_what_is_too_large_is_not_read_to_its_end(stand_in: RunningStandIn, prompt: str, answer: str) -> None:
    size = len(picture_for(prompt))
    limit = 3_000_000 if answer == "10gb" else size - 1
    assert "too large" in refusal(stand_in, url_at(stand_in, prompt, get=answer.replace("large", "")), max_bytes=limit)
    assert stand_in.fetches(prompt)["count"] == 1


def test_an_image_of_the_largest_size_is_fetched(stand_in: RunningStandIn, prompt: str) -> None:
    size = len(picture_for(prompt))
    assert fetch(stand_in, url_at(stand_in, prompt), max_bytes=size) == picture_for(prompt)


def test_a_provider_that_cannot_be_reached_is_named(prompt: str, stand_in: RunningStandIn) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(stand_in, f"http://{address}{path_for(prompt, {})}", address)
    assert said.startswith("127.0.0.1: ConnectError: ")
    assert "refused" in said


def test_a_deadline_of_a_request_ends_its_body(stand_in: RunningStandIn, prompt: str) -> None:
    started = time.monotonic()
    with (
        httpx2.Client(event_hooks=DEADLINE_HOOKS, timeout=TIMEOUT, trust_env=False) as client,
        pytest.raises(httpx2.ReadTimeout),
    ):
        client.get(url_at(stand_in, prompt, get="endless"), extensions={"deadline": started + SHORT_TIMEOUT})
    assert time.monotonic() - started < 10 * SHORT_TIMEOUT


# --- Hosts of the setting --------------------------------------------------------------------------------------------


def test_a_listed_host_is_asked_without_the_key(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-gateway: ours")
    assert fetch(stand_in, url_at(foreign, prompt), foreign.address) == picture_for(prompt)
    headers = headers_of(foreign, prompt)
    assert "authorization" not in headers
    assert "x-gateway" not in headers
    assert "stand-in-key" not in str(headers)
    assert not [name for name in headers if name.startswith("x-stainless")]
    assert headers["host"] == foreign.address


def test_a_listed_name_with_a_private_address_is_refused(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str
) -> None:
    _, port = foreign.address.split(":")
    said = refusal(stand_in, f"http://localhost:{port}{path_for(prompt, {})}", f"localhost:{port}")
    assert said.startswith("localhost: its address is not public")
    assert foreign.fetches(prompt)["count"] == 0


def test_a_listed_name_with_a_listed_address_is_asked(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str
) -> None:
    _, port = foreign.address.split(":")
    url = f"http://localhost:{port}{path_for(prompt, {})}"
    assert fetch(stand_in, url, f"localhost:{port},{foreign.address}") == picture_for(prompt)
    assert headers_of(foreign, prompt)["host"] == f"localhost:{port}"


class Resolver:
    """Resolves names as a test says, and addresses as ever; each of `answers` is for one look-up, the last for all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if not host.endswith(".test"):
            return self._resolve(host, port, *arguments, **options)
        self.asked.append(host)
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


def test_the_checked_address_is_connected_to(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may resolve to another address a moment after it was checked."""
    _, port = foreign.address.split(":")
    resolver = Resolver(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
    url = f"http://images.test:{port}{path_for(prompt, {})}"
    assert fetch(stand_in, url, f"images.test:{port},127.0.0.1:{port}") == picture_for(prompt)
    assert resolver.asked == ["images.test"]


def test_a_name_that_moves_to_a_private_address_is_refused_then(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = foreign.address.split(":")
    Resolver(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    url = f"http://images.test:{port}{path_for(prompt, {'get': '503'})}"
    assert "not public" in refusal(stand_in, url, f"images.test:{port},127.0.0.1:{port}")
    assert foreign.fetches(prompt)["count"] == 1


@pytest.mark.parametrize("others", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3"]])
def test_another_address_is_tried_after_those_that_fail(
    stand_in: RunningStandIn,
    foreign: RunningStandIn,
    prompt: str,
    monkeypatch: pytest.MonkeyPatch,
    others: list[str],
) -> None:
    _, port = foreign.address.split(":")
    addresses = [*others, "127.0.0.1"]
    Resolver(monkeypatch, addresses)
    listed = ",".join(f"{host}:{port}" for host in ("images.test", *addresses))
    assert fetch(stand_in, f"http://images.test:{port}{path_for(prompt, {})}", listed) == picture_for(prompt)


def test_a_name_that_does_not_resolve_is_tried_again(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = foreign.address.split(":")
    failures = iter([socket.gaierror(-3, "Temporary failure in name resolution")])
    resolve = socket.getaddrinfo

    def fail_once(host: str, *arguments: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return resolve("127.0.0.1" if host == "images.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fail_once)
    url = f"http://images.test:{port}{path_for(prompt, {})}"
    assert fetch(stand_in, url, f"images.test:{port},127.0.0.1:{port}") == picture_for(prompt)


def test_a_name_that_never_resolves_is_said_to(stand_in: RunningStandIn) -> None:
    said = refusal(stand_in, "https://no-such-host.invalid/x", "no-such-host.invalid")
    assert said.startswith("no-such-host.invalid: gaierror: ")


# --- TLS -------------------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(certificate: trustme.LeafCert, data: bytes, names: list[str | None]) -> Iterator[int]:
    """Serve bytes with TLS; note the names that clients ask for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(HTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of clients that refuse the certificate."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.sni_callback = lambda _, name, __: names.append(name)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """An authority that is trusted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    fetching._tls.cache_clear()
    yield authority
    fetching._tls.cache_clear()


def test_the_certificate_is_that_of_the_name(
    stand_in: RunningStandIn, prompt: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, ["127.0.0.1"])
    names: list[str | None] = []
    with tls_server(authority.issue_cert("images.test"), b"bytes", names) as port:
        hosts = f"images.test:{port},127.0.0.1:{port}"
        assert fetch(stand_in, f"https://images.test:{port}/x", hosts) == b"bytes"
    assert names == ["images.test"]


@pytest.mark.parametrize("name", ["other.test", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(
    stand_in: RunningStandIn, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Resolver(monkeypatch, ["127.0.0.1"])
    with tls_server(authority.issue_cert(name), b"bytes", []) as port:
        said = refusal(stand_in, f"https://images.test:{port}/x", f"images.test:{port},127.0.0.1:{port}")
    assert "certificate verify failed" in said


def test_a_certificate_of_an_unknown_authority_is_refused(
    stand_in: RunningStandIn, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, ["127.0.0.1"])
    with tls_server(trustme.CA().issue_cert("images.test"), b"bytes", []) as port:
        said = refusal(stand_in, f"https://images.test:{port}/x", f"images.test:{port},127.0.0.1:{port}")
    assert "certificate verify failed" in said


# --- Proxies ---------------------------------------------------------------------------------------------------------


def test_only_the_provider_is_asked_through_a_proxy(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert fetch(stand_in, url_at(foreign, prompt), foreign.address) == picture_for(prompt)
        assert "ConnectError" in refusal(stand_in, url_at(stand_in, prompt))
    assert stand_in.fetches(prompt)["count"] == 0


# --- Within a generation ---------------------------------------------------------------------------------------------


def asking(prompt: str, fault: str, partial_images: int = 0) -> GenerationRequest:
    return GenerationRequest(
        f"{prompt} [[fault:{fault}]]",
        "gpt-image-2.5-flare",
        "auto",
        "auto",
        "png",
        "auto",
        "123e4567-e89b-42d3-a456-426614174000",
        partial_images=partial_images,
    )


def hidden(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def failure(generator: OpenAIGenerator, asked: GenerationRequest) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        generator.generate(asked)
    assert SECRET not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("fault", "partials"), [("url", 0), ("stream_url", 0), ("stream_url", 1)])
def test_an_answer_with_a_url_becomes_the_image(
    stand_in: RunningStandIn, prompt: str, fault: str, partials: int
) -> None:
    asked = asking(prompt, fault, partials)
    for generator in open_generator(stand_in.base_url, always_streams=fault == "stream_url"):
        image = generator.generate(asked)
    assert image.data == picture_for(asked.prompt)
    assert (image.content_type, image.width, image.height) == ("image/png", 64, 48)
    assert image.usage is not None
    assert (stand_in.count(asked.prompt), stand_in.fetches(asked.prompt)["count"]) == (1, 1)


def test_an_answer_with_the_url_of_a_listed_host_becomes_the_image(
    stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str
) -> None:
    asked = asking(prompt, f"url:origin64={hidden(f'http://{foreign.address}')}")
    for generator in open_generator(stand_in.base_url, image_hosts=foreign.address):
        assert generator.generate(asked).data == picture_for(asked.prompt)
    assert (stand_in.count(asked.prompt), foreign.fetches(asked.prompt)["count"]) == (1, 1)


@pytest.mark.parametrize("fault", ["url:get=404", f"url:to64={hidden(f'http://169.254.169.254/?{SECRET}')}"])
def test_an_answer_whose_url_cannot_be_fetched_is_passed_on_as_it_came(
    stand_in: RunningStandIn, prompt: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asking(prompt, fault)
    for generator in open_generator(stand_in.base_url):
        error = failure(generator, asked)
    assert isinstance(error, UnreadableAnswerError)
    assert error.may_have_billed
    [image] = json.loads(error.body)["data"]
    assert SECRET in image["url"]
    assert image["b64_json"] is None
    assert stand_in.count(asked.prompt) == 1
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("pixyproxy")]
    assert "answered with status 404" in line or "169.254.169.254, port 80" in line
    assert "request id req_stand_in_" in line
    assert SECRET not in line


@pytest.mark.parametrize("fault", ["url", "stream_url"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_fetched_bytes_that_are_no_image_are_passed_on_with_the_url(
    stand_in: RunningStandIn, prompt: str, fault: str, kind: str
) -> None:
    asked = asking(prompt, f"{fault}:get={kind}")
    for generator in open_generator(stand_in.base_url, always_streams=fault == "stream_url"):
        error = failure(generator, asked)
    assert isinstance(error, UnreadableAnswerError)
    answer = json.loads(error.body)
    image = answer["data"][0] if fault == "url" else answer
    assert base64.b64decode(image["b64_json"]) == OTHER_FILES[kind]
    assert SECRET in image["url"]
    assert stand_in.fetches(asked.prompt)["count"] == 1


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_bytes_that_are_no_image_are_passed_on(stand_in: RunningStandIn, prompt: str, kind: str) -> None:
    for generator in open_generator(stand_in.base_url):
        error = failure(generator, asking(prompt, f"file={kind}"))
    assert isinstance(error, UnreadableAnswerError)
    assert base64.b64decode(json.loads(error.body)["data"][0]["b64_json"]) == OTHER_FILES[kind]


def test_the_largest_answer_is_also_the_largest_image(stand_in: RunningStandIn, prompt: str) -> None:
    asked = asking(prompt, "url:get=padded")
    client = make_client(stand_in.api_key, stand_in.base_url, None, None, TIMEOUT)
    with closing(OpenAIGenerator(client, max_answer_bytes=100_000)) as generator:
        error = failure(generator, asked)
    assert isinstance(error, UnreadableAnswerError)
    for other in open_generator(stand_in.base_url):
        assert len(other.generate(asked).data) > 100_000


def answering(
    listener: socket.socket, body: dict[str, Any], content_type: str = "application/json"
) -> threading.Thread:
    """Answer one request with a body, or with it as an event, and then fail any other."""
    text = json.dumps(body)
    if content_type == "text/event-stream":
        text = f"data: {text}\n\n"

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + text.encode())

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ({"error": {"message": "no"}, "data": [{"url": "URL"}]}, "application/json"),
        ({"type": "error", "error": {"message": "no"}, "url": "URL"}, "text/event-stream"),
        ({"type": "image_generation.partial_image", "url": "URL"}, "text/event-stream"),
        ({"data": [{"url": ""}]}, "application/json"),
        ({"data": [{"url": 7}]}, "application/json"),
        ({"data": ["URL"]}, "application/json"),
        ({"data": [{}, {"url": "URL"}]}, "application/json"),
        ({"data": {"url": "URL"}}, "application/json"),
    ],
)
def test_only_the_first_image_of_a_success_is_fetched(
    stand_in: RunningStandIn, prompt: str, body: dict[str, Any], content_type: str
) -> None:
    asked = asking(prompt, "url")
    written = json.loads(json.dumps(body).replace("URL", url_at(stand_in, asked.prompt)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = answering(listener, written, content_type)
        for generator in open_generator(
            f"http://127.0.0.1:{listener.getsockname()[1]}/v1", image_hosts=stand_in.address, always_streams=True
        ):
            failure(generator, asked)
        thread.join()
    assert stand_in.fetches(asked.prompt)["count"] == 0


@pytest.mark.parametrize(("fault", "count"), [("images=3", 3), ("url:images=2", 2)])
def test_the_first_of_several_images_counts_and_the_others_are_noted(
    stand_in: RunningStandIn, prompt: str, fault: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asking(prompt, fault)
    for generator in open_generator(stand_in.base_url):
        generator.generate(asked)
    [record] = [record for record in caplog.records if record.name.startswith("pixyproxy")]
    assert record.levelno == logging.WARNING
    assert f"{count} images" in record.getMessage()


def test_one_image_is_nothing_to_note(stand_in: RunningStandIn, prompt: str, caplog: pytest.LogCaptureFixture) -> None:
    for generator in open_generator(stand_in.base_url):
        generator.generate(asking(prompt, "url"))
    assert not [record for record in caplog.records if record.name.startswith("pixyproxy")]
