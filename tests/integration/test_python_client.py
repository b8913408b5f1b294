"""Both clients in Python, with real servers and real connections."""

from __future__ import annotations

import datetime
import io
import ipaddress
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2_grpc as pb_grpc

from pixyproxy.client import (
    TLS,
    CredentialsError,
    DeadlineExceededError,
    Generation,
    GenerationCancelledError,
    GenerationState,
    ImageDetail,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    PartialImage,
    PixyProxyClient,
    RetryPolicy,
    UnavailableError,
    Visibility,
)
from pixyproxy.resource.image_servicer import ImageServicer
from tests.faults.tcp_proxy import tcp_proxy
from tests.integration.conftest import People, asking
from tests.support.addresses import free_port
from tests.support.client_kinds import MakeClient
from tests.support.image_files import WITH_PROVENANCE, png_chunk, png_with
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT
from tests.support.servers import Login, RunningServer, running_server
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.waiting import wait_until
from tests.unit.resource.fakes import GUID, FakeImageService

Ask = Callable[[str, TLS | bool], ImageDetail]


class ClientOf(Protocol):
    """Makes a client of a server, signed in or not."""

    def __call__(
        self, server: RunningServer, login: Login | None, address: str = "", retry: RetryPolicy = ...
    ) -> PixyProxyClient: ...


@pytest.fixture
def client_of(make_client: MakeClient) -> ClientOf:
    def client_of(
        server: RunningServer, login: Login | None, address: str = "", retry: RetryPolicy = RetryPolicy()
    ) -> PixyProxyClient:
        return make_client(
            address or server.address,
            username=login.username if login else None,
            password=login.password if login else None,
            retry=retry,
        )

    return client_of


@pytest.fixture
def ann(client_of: ClientOf, server: RunningServer, people: People) -> Iterator[PixyProxyClient]:
    with client_of(server, people.ann) as client:
        yield client


def _settled(image: ImageDetail) -> ImageDetail:
    """A detail without its placeholder, which may come between two looks at an image."""
    return replace(image, placeholder=b"")


def test_an_images_life(
    client_of: ClientOf, server: RunningServer, ann: PixyProxyClient, prompt: str, tmp_path: Path
) -> None:
    made = ann.create_image(prompt, tags=["sea"], size="64x64", output_format="webp")
    assert (made.prompt, made.tags, made.width, made.content_type) == (prompt, ("sea",), 64, "image/webp")
    assert [_settled(image) for image in ann.search_images(prompt)] == [_settled(made)]
    assert list(ann.list_images(guid=made.guid, visibility=Visibility.PUBLIC)) == []

    with client_of(server, None) as anybody:
        with pytest.raises(NotFoundError):
            anybody.get_image(made.guid)
        with pytest.raises(CredentialsError):
            anybody.delete_image(made.guid)
        changed = ann.update_image(made.guid, visibility=Visibility.PUBLIC)
        assert _settled(anybody.get_image(made.guid)) == _settled(changed)
        assert changed.tags == made.tags
        info = anybody.fetch_content(made.guid, tmp_path / "picture.webp")
    assert (tmp_path / "picture.webp").stat().st_size == info.size_bytes == made.size_bytes
    assert b"".join(ann.stream_content(made.guid, read_offset=4, read_limit=4)) != b""

    ann.delete_image(made.guid)
    with pytest.raises(NotFoundError):
        ann.get_image(made.guid)


def test_an_import(ann: PixyProxyClient, prompt: str, tmp_path: Path) -> None:
    path = tmp_path / "fox.webp"
    path.write_bytes(WITH_PROVENANCE["webp"])
    key = str(uuid.uuid4())
    made = ann.import_image(path, prompt, tags=["own"], request_id=key)
    assert (made.prompt, made.tags, made.content_type, made.model) == (prompt, ("own",), "image/webp", "")
    again = ann.import_image(path.read_bytes(), prompt, tags=["own"], request_id=key)
    assert _settled(again) == _settled(made)
    assert [_settled(image) for image in ann.search_images(prompt)] == [_settled(made)]
    assert b"".join(ann.stream_content(made.guid)) == path.read_bytes()
    with pytest.raises(InvalidRequestError) as caught:
        ann.import_image(io.BytesIO(b"GIF89a"), prompt)
    assert [violation.field for violation in caught.value.violations] == ["data"]


def test_an_import_whose_connection_breaks_is_sent_again(
    client_of: ClientOf, server: RunningServer, prompt: str
) -> None:
    login = server.new_login()
    data = png_with(png_chunk(b"prVt", bytes(20_000_000)))
    host, _, port = server.address.rpartition(":")
    with (
        tcp_proxy(host, int(port)) as proxy,
        client_of(server, login, f"127.0.0.1:{proxy.port}") as client,
    ):
        broken = threading.Event()

        def break_once(sent: int, _: int) -> None:
            if sent > 10_000_000 and not broken.is_set():
                broken.set()
                proxy.refuse()
                proxy.resume()

        made = client.import_image(data, prompt, on_progress=break_once)
        assert broken.is_set()
        assert [image.guid for image in client.list_images(author=login.username)] == [made.guid]
        assert made.size_bytes == len(data)


def test_all_pages(client_of: ClientOf, server: RunningServer) -> None:
    author = server.new_login()
    # A page of 200 of these would be longer than gRPC's own limit for a message, 4 MiB.
    store_details(server, author, [make_detail(author, prompt=f"{number} " + "🌊" * 31_000) for number in range(45)])
    with client_of(server, author) as client:
        found = [image.prompt.split()[0] for image in client.list_images(page_size=20, author=author.username)]
        assert found == [str(number) for number in reversed(range(45))]
        page = client.list_page(page_size=200, author=author.username)
    assert 0 < len(page.images) < 45
    assert page.next_page_token


def test_a_deadline(
    client_of: ClientOf, provider_server: RunningServer, artists: People, stand_in: RunningStandIn, prompt: str
) -> None:
    slow = f"{prompt} [[fault:slow=3]]"
    with client_of(provider_server, artists.ann) as client:
        with pytest.raises(DeadlineExceededError) as caught:
            client.create_image(slow, timeout=1)
        image = client.create_image(slow, request_id=caught.value.creation_request_id)
    assert image.prompt == slow
    assert stand_in.count(slow) == 1


def test_a_creation_whose_connection_breaks_is_found(
    client_of: ClientOf, provider_server: RunningServer, artists: People, stand_in: RunningStandIn, prompt: str
) -> None:
    slow = f"{prompt} [[fault:slow=2]]"
    host, _, port = provider_server.address.rpartition(":")
    with (
        tcp_proxy(host, int(port)) as proxy,
        client_of(provider_server, artists.ann, f"127.0.0.1:{proxy.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.create_image, slow)
        wait_until(lambda: stand_in.count(slow) == 1, TIMEOUT, "the provider to be asked")
        proxy.refuse()
        proxy.resume()
        image = call.result(TIMEOUT)
    assert image.prompt == slow
    assert stand_in.count(slow) == 1


def _returning() -> dict[str, str]:
    """The settings of a server that leaves its callers at once when it is told to end, and comes back at its place.

    A port that the system chose might be somebody's connection by then.
    """
    return {"PIXYPROXY_DRAIN_TIMEOUT": "0", "PIXYPROXY_LISTEN": f"127.0.0.1:{free_port()}"}


def test_a_creation_is_found_after_a_new_start_of_the_server(
    client_of: ClientOf, stand_in: RunningStandIn, tmp_path: Path, prompt: str
) -> None:
    """The server is told to end, finishes the image without its caller, and comes back at the same place."""
    slow = f"{prompt} [[fault:slow=2]]"
    settings = asking(stand_in) | _returning()
    with ThreadPoolExecutor(1) as pool:
        with running_server(tmp_path, settings) as server:
            # On a busy machine a start takes longer than a server that never answered is waited for.
            client = client_of(server, server.admin, retry=RetryPolicy(unanswered_attempts=100))
            call = pool.submit(client.create_image, slow)
            wait_until(lambda: stand_in.count(slow) == 1, TIMEOUT, "the provider to be asked")
            assert server.stop() == 0
        with running_server(tmp_path, settings), client:
            image = call.result(TIMEOUT)
            assert [_settled(listed) for listed in client.list_images()] == [_settled(image)]
    assert stand_in.count(slow) == 1


def test_an_unknown_outcome_is_not_asked_for_again(
    client_of: ClientOf, provider_server: RunningServer, artists: People, stand_in: RunningStandIn, prompt: str
) -> None:
    lost = f"{prompt} [[fault:drop]]"
    with client_of(provider_server, artists.ann) as client, pytest.raises(OutcomeUnknownError):
        client.create_image(lost)
    assert stand_in.count(lost) == 1


def test_bytes_go_on_where_the_connection_broke(
    client_of: ClientOf, server: RunningServer, people: People, tmp_path: Path
) -> None:
    image = store_image(server, people.ann, os.urandom(8_000_000))
    host, _, port = server.address.rpartition(":")
    with (
        tcp_proxy(host, int(port)) as proxy,
        client_of(server, people.ann, f"127.0.0.1:{proxy.port}") as client,
    ):
        broken = threading.Event()

        def break_once(done: int, _: int) -> None:
            if done > 1_000_000 and not broken.is_set():
                broken.set()
                proxy.refuse()
                proxy.resume()

        info = client.fetch_content(image.guid, tmp_path / "picture", on_progress=break_once)
    assert broken.is_set()
    assert info.sha256 == image.sha256
    assert (tmp_path / "picture").stat().st_size == image.size_bytes


# --- Generations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def resting(tmp_path: Path) -> Iterator[tuple[RunningServer, Callable[[], None]]]:
    """A server whose generation worker is stopped, and what lets it go on."""
    with running_server(tmp_path / "server", {"PIXYPROXY_WORKERS": "2"}) as server:
        worker = server.stop_generation_worker()
        yield server, lambda: os.kill(worker, signal.SIGCONT)
        os.kill(worker, signal.SIGCONT)


needs_processes = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="a server has one process on this system")


@needs_processes
def test_a_generation_is_watched_over_a_connection_that_breaks(
    client_of: ClientOf, resting: tuple[RunningServer, Callable[[], None]], prompt: str
) -> None:
    server, resume = resting
    host, _, port = server.address.rpartition(":")
    with (
        tcp_proxy(host, int(port)) as proxy,
        client_of(server, server.admin, f"127.0.0.1:{proxy.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        started = client.create_generation(prompt, size="64x64", partial_images=2)
        events = client.watch_generation(started.guid)
        assert next(events) == started
        proxy.refuse()
        proxy.resume()
        rest = pool.submit(list[Generation | PartialImage], events)
        wait_until(lambda: _watches(server) == 2, TIMEOUT, "the second watch to begin")
        resume()
        *before, ended = rest.result(TIMEOUT)
    assert isinstance(ended, Generation)
    assert ended.result().prompt == prompt
    partials = [event for event in before if isinstance(event, PartialImage)]
    assert [partial.index for partial in partials] == [0, 1]
    for partial in partials:
        with Image.open(io.BytesIO(partial.data)) as picture:
            picture.load()
            assert (picture.size, partial.content_type) == ((64, 64), "image/png")
    states = [event.state for event in before if isinstance(event, Generation)]
    assert states in ([], [GenerationState.SUBMITTED])


def test_a_watch_goes_on_after_a_new_start_of_the_server(
    client_of: ClientOf, stand_in: RunningStandIn, tmp_path: Path, prompt: str
) -> None:
    held = f"{prompt} [[fault:hold]]"
    settings = asking(stand_in) | _returning()
    with ThreadPoolExecutor(1) as pool:
        with running_server(tmp_path, settings) as server:
            # On a busy machine a start takes longer than a server that never answered is waited for.
            client = client_of(server, server.admin, retry=RetryPolicy(unanswered_attempts=100))
            events = client.watch_generation(_submitted(client, held))
            # The server may be told to end only when the first state has come, and not when the call is logged.
            before = next(events)
            rest = pool.submit(list[Generation | PartialImage], events)
            server.terminate()
            wait_until(lambda: _watches(server, "REQUEST END") == 1, TIMEOUT, "the watch to be broken off")
            stand_in.release(held)
            assert server.process.wait(TIMEOUT) == 0
        with running_server(tmp_path, settings) as server, client:
            after = rest.result(TIMEOUT)
            wait_until(lambda: _watches(server) == 1, TIMEOUT, "the second watch to be logged")
    states = [event.state for event in [before, *after] if isinstance(event, Generation)]
    assert states == [GenerationState.SUBMITTED, GenerationState.SUCCEEDED]
    assert stand_in.count(held) == 1


def _submitted(client: PixyProxyClient, prompt: str) -> str:
    """Start a generation, and return its guid once it is submitted."""
    guid = client.create_generation(prompt).guid
    wait_until(lambda: client.get_generation(guid).state is GenerationState.SUBMITTED, TIMEOUT, "it to be submitted")
    return guid


def _watches(server: RunningServer, event: str = "REQUEST START") -> int:
    return sum("[WatchGeneration:" in line and event in line for line in server.log_lines)


@needs_processes
def test_generations_are_cancelled_joined_and_listed(
    client_of: ClientOf, resting: tuple[RunningServer, Callable[[], None]], prompt: str
) -> None:
    server, resume = resting
    with client_of(server, server.admin) as client, ThreadPoolExecutor(1) as pool:
        unwanted, wanted = (client.create_generation(prompt, size="64x64") for _ in range(2))
        cancelled = client.cancel_generation(unwanted.guid)
        assert cancelled.state is GenerationState.CANCELLED
        assert client.cancel_generation(unwanted.guid) == cancelled
        with pytest.raises(GenerationCancelledError):
            client.wait_for_generation(unwanted.guid)

        joined = pool.submit(client.create_image, prompt, size="64x64", request_id=wanted.request_id)
        resume()
        image = joined.result(TIMEOUT)
        assert _settled(client.wait_for_generation(request_id=wanted.request_id)) == _settled(image)
        assert image.guid == wanted.image_guid
        with pytest.raises(InvalidRequestError) as caught:
            client.cancel_generation(wanted.guid)
        assert caught.value.reason == "ALREADY_SUBMITTED"
        assert [found.guid for found in client.list_generations(page_size=1)] == [wanted.guid, unwanted.guid]
        assert list(client.list_generations(states=[GenerationState.CANCELLED])) == [cancelled]
    with client_of(server, server.new_login()) as other:
        assert list(other.list_generations()) == []
        for look in (other.get_generation, other.cancel_generation, other.wait_for_generation):
            with pytest.raises(NotFoundError):
                look(wanted.guid)


def test_the_error_of_a_generation_is_that_of_a_creation(
    client_of: ClientOf, provider_server: RunningServer, artists: People, prompt: str
) -> None:
    for fault, kind in (("moderation_blocked", InvalidRequestError), ("drop", OutcomeUnknownError)):
        text = f"{prompt} [[fault:{fault}]]"
        with client_of(provider_server, artists.ann) as client:
            guid = client.create_generation(text).guid
            with pytest.raises(kind) as watched:
                client.wait_for_generation(guid)
            with pytest.raises(kind) as created:
                client.create_image(text)
        assert (watched.value.reason, watched.value.code) == (created.value.reason, created.value.code)
        assert watched.value.metadata == created.value.metadata


def test_a_server_that_is_not_there(make_client: MakeClient) -> None:
    told = threading.Event()
    policy = RetryPolicy(unanswered_attempts=2)
    with make_client("127.0.0.1:1", retry=policy, on_unreachable=told.set) as nobody:
        with pytest.raises(UnavailableError) as caught:
            nobody.get_image(GUID)
        assert caught.value.request_id == ""
        assert told.wait(TIMEOUT)


# --- TLS -------------------------------------------------------------------------------------------------------------


class Authority:
    """Makes certificates, as files, that one authority vouches for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of a test")])
        self.file = self._write("ca.pem", self._certificate("authority of a test", self._key, is_authority=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Make a certificate for 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.pem", self._certificate(name, key)), self._write(f"{name}.key", pem)

    def _certificate(self, name: str, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@contextmanager
def encrypting_server(authority: Authority, *, asks_for_certificates: bool = False) -> Iterator[str]:
    certificate, key = authority.issue("server")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=authority.file.read_bytes() if asks_for_certificates else None,
        require_client_auth=asks_for_certificates,
    )
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        pb_grpc.add_ImageServiceServicer_to_server(ImageServicer(FakeImageService()), server)  # type: ignore[no-untyped-call]
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.fixture
def ask(make_client: MakeClient) -> Ask:
    def ask(address: str, tls: TLS | bool) -> ImageDetail:
        with make_client(address, tls=tls, username="ann", password="x", retry=RetryPolicy(attempts=1)) as client:
            return client.get_image(GUID)

    return ask


def test_a_server_that_an_authority_of_ones_own_vouches_for(ask: Ask, authority: Authority) -> None:
    with encrypting_server(authority) as address:
        assert ask(address, TLS(authority.file)).guid == GUID
        for tls in (True, False):
            with pytest.raises(UnavailableError):
                ask(address, tls)


def test_a_server_that_asks_for_a_certificate(ask: Ask, authority: Authority, tmp_path: Path) -> None:
    with encrypting_server(authority, asks_for_certificates=True) as address:
        assert ask(address, TLS(authority.file, *authority.issue("ann"))).guid == GUID
        others = Authority(tmp_path / "others").issue("ann")
        for tls in (TLS(authority.file), TLS(authority.file, *others)):
            with pytest.raises(UnavailableError):
                ask(address, tls)
