"""Answers in other forms than OpenAI's: each becomes the image, or is kept, and is paid for once."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx2
import pytest
from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.data.stores.local_image_store import LocalImageStore
from tests.integration.conftest import asking, reassure
from tests.support.image_client import SMALL, ImageClient
from tests.support.image_urls import OTHER_FILES, SECRET, picture_for
from tests.support.openai_stand_in import RunningStandIn, Submission, make_picture, start_stand_in
from tests.support.rpc import TIMEOUT, Refusal
from tests.support.servers import Finished, RunningServer, environment, prepare_database, run_command, running_server
from tests.support.typed import at_a_terminal
from tests.support.waiting import wait_until

_ENCODINGS = httpx2.Client().headers["accept-encoding"].split(", ")


def hidden(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def create(artist: ImageClient, prompt: str, partial_images: int = 0) -> tuple[pb.ImageDetail, bytes]:
    """Create an image; return its detail and its bytes."""
    chosen = pb.GenerationOptions(size=SMALL.size, partial_images=partial_images)
    made = artist.create(prompt, options=chosen, request_id=str(uuid.uuid4()))
    return made, artist.content(made.guid)[1]


def refused_twice(artist: ImageClient, stand_in: RunningStandIn, prompt: str) -> Refusal:
    """Return the first error for a prompt, after checking that a repetition submits nothing."""
    request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=SMALL)
    refused = artist.refused(request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert not re.search(r"/|http|127\.0|localhost", refused.message)
    assert SECRET not in f"{refused.message} {refused.details}"
    again = artist.refused(request)
    assert (again.code, again.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OUTCOME_UNKNOWN")
    assert stand_in.count(prompt) == 1
    return refused


def kept_guid(refused: Refusal) -> str:
    [guid] = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", refused.message)
    return str(guid)


# --- Bytes in the answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "chunked=1000",
        "chunked=1",
        "bytes",
        *(f"encoded={encoding}" for encoding in (*_ENCODINGS, "raw_deflate")),
        "data_url",
        "url_safe",
        "images=3",
    ],
)
def test_an_image_in_any_form_is_stored(artist: ImageClient, stand_in: RunningStandIn, prompt: str, fault: str) -> None:
    prompt += f" [[fault:{fault}]]"
    _, data = create(artist, prompt)
    assert data == make_picture(Submission({"prompt": prompt, "size": SMALL.size}, {}, 1))
    assert stand_in.count(prompt) == 1


def test_gzip_and_deflate_are_among_the_encodings_that_are_announced(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    create(artist, prompt)
    [headers] = stand_in.submissions(prompt)["headers"]
    assert headers["Accept-Encoding"].split(", ") == _ENCODINGS
    assert {"gzip", "deflate"} <= set(_ENCODINGS)


def test_further_images_of_an_answer_are_noted(
    artist: ImageClient, provider_server: RunningServer, prompt: str
) -> None:
    create(artist, f"{prompt} [[fault:images=3]]")
    wait_until(
        lambda: [line for line in provider_server.log_lines if " WARNING " in line and "sent 3 images" in line],
        TIMEOUT,
        "the warning",
    )


# --- A URL in its place ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "partial_images", "fetches"),
    [
        ("url", 0, 1),
        ("url:get=bytes", 0, 1),
        ("url:get=compressed", 0, 1),
        ("url:images=2", 0, 1),
        ("url:get=503:fails=1", 0, 2),
        ("url:get=cut:fails=1", 0, 2),
        ("stream_url", 2, 1),
    ],
)
def test_an_image_at_a_url_of_the_provider_is_stored(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, fault: str, partial_images: int, fetches: int
) -> None:
    prompt += f" [[fault:{fault}]]"
    made, data = create(artist, prompt, partial_images=partial_images)
    assert data == picture_for(prompt)
    assert (made.content_type, made.width, made.height, made.size_bytes) == ("image/png", 64, 48, len(data))
    assert made.usage.total_tokens == made.usage.input_tokens + 1056
    assert (stand_in.count(prompt), stand_in.fetches(prompt)["count"]) == (1, fetches)


_REFUSED_URLS = {
    "http://169.254.169.254/latest/meta-data/": "169.254.169.254, port 80,",
    f"https://images.example.com/x?sig={SECRET}": "images.example.com, port 443,",
    f"http://user:{SECRET}@{{host}}:{{port}}/x": "credentials",
    "http://{host}:{port}@169.254.169.254/": "credentials",
    "http://{host}.:{port}/x": "127.0.0.1., port",
    "http://LOCALHOST:{port}/x": "localhost, port",
    "HTTP://2130706433:{port}/x": "2130706433, port",
    "http://[::1]:{port}/x": "::1, port",
    "http://[::ffff:127.0.0.1]:{port}/x": "::ffff:127.0.0.1, port",
    "http://{host}:1/x": "127.0.0.1, port 1,",
    "https://{host}:{port}/x": "127.0.0.1, port",
    "file:///etc/passwd": "no host",
    "file://localhost/etc/passwd": "scheme",
    "ftp://{host}:{port}/x": "scheme",
    "/x": "no host",
}


@pytest.mark.parametrize("url", _REFUSED_URLS)
def test_no_url_leads_anywhere_else(
    artist: ImageClient, provider_server: RunningServer, stand_in: RunningStandIn, prompt: str, url: str
) -> None:
    host, port = stand_in.address.split(":")
    written = url.format(host=host, port=port)
    prompt += f" [[fault:url:to64={hidden(written)}]]"
    refused = refused_twice(artist, stand_in, prompt)
    kept = json.loads((provider_server.image_folder / ".aside" / kept_guid(refused)).read_bytes())
    assert kept["data"][0] == {"b64_json": None, "url": written}
    lines = provider_server.wait_for_end_of(refused.call_id)
    [line] = [line for line in lines if "sent no usable image" in line]
    assert _REFUSED_URLS[url] in line
    assert not [line for line in lines if SECRET in line or "meta-data" in line]


@pytest.mark.parametrize("answer", ["redirect", "redirect_back", "404", "html", "gif"])
def test_what_a_url_leads_to_besides_an_image_is_no_image(
    artist: ImageClient, provider_server: RunningServer, stand_in: RunningStandIn, prompt: str, answer: str
) -> None:
    prompt += f" [[fault:url:get={answer}]]"
    refused = refused_twice(artist, stand_in, prompt)
    assert stand_in.fetches(prompt)["count"] == 1
    kept = json.loads((provider_server.image_folder / ".aside" / kept_guid(refused)).read_bytes())["data"][0]
    assert SECRET in kept["url"]
    data = OTHER_FILES.get(answer)
    assert kept["b64_json"] == (None if data is None else base64.b64encode(data).decode())
    assert not [line for line in provider_server.wait_for_end_of(refused.call_id) if SECRET in line]


@pytest.mark.parametrize("answer", ["endless", "hang"])
def test_a_url_that_never_ends_is_given_up(
    short_timeout_server: RunningServer, stand_in: RunningStandIn, prompt: str, answer: str
) -> None:
    artist = ImageClient(short_timeout_server, short_timeout_server.admin)
    reassure(artist)
    prompt += f" [[fault:url:get={answer}]]"
    refused_twice(artist, stand_in, prompt)
    assert stand_in.fetches(prompt)["count"] == 1


def test_a_file_that_claims_ten_gigabytes_is_given_up(
    artist: ImageClient, provider_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:url:get=10gb]]"
    refused = refused_twice(artist, stand_in, prompt)
    assert stand_in.fetches(prompt)["count"] == 1
    assert [line for line in provider_server.wait_for_end_of(refused.call_id) if "too large" in line]


# --- Hosts of the setting --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign() -> Iterator[RunningStandIn]:
    """Another host than the provider's."""
    with start_stand_in() as running:
        yield running


@pytest.fixture(scope="module")
def listing_server(
    tmp_path_factory: pytest.TempPathFactory, stand_in: RunningStandIn, foreign: RunningStandIn
) -> Iterator[RunningServer]:
    """A server that may fetch from `foreign`, whose address is listed, and from a name whose address is not."""
    hosts = f"{foreign.address}, localhost:{stand_in.address.split(':')[1]}"
    with running_server(
        tmp_path_factory.mktemp("listing"), asking(stand_in) | {"PIXYPROXY_PROVIDER_IMAGE_HOSTS": hosts}
    ) as running:
        yield running


def test_an_image_at_a_listed_host_is_stored(
    listing_server: RunningServer, stand_in: RunningStandIn, foreign: RunningStandIn, prompt: str
) -> None:
    prompt += f" [[fault:url:origin64={hidden(f'http://{foreign.address}')}]]"
    _, data = create(ImageClient(listing_server, listing_server.admin), prompt)
    assert data == picture_for(prompt)
    [headers] = foreign.fetches(prompt)["headers"]
    assert "authorization" not in map(str.lower, headers)
    assert stand_in.count(prompt) == 1


def test_a_listed_name_that_resolves_to_a_private_address_is_refused(
    listing_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    _, port = stand_in.address.split(":")
    prompt += f" [[fault:url:origin64={hidden(f'http://localhost:{port}')}]]"
    refused = refused_twice(ImageClient(listing_server, listing_server.admin), stand_in, prompt)
    assert stand_in.fetches(prompt)["count"] == 0
    lines = listing_server.wait_for_end_of(refused.call_id)
    assert [line for line in lines if "localhost: its address is not public" in line]


# --- What was kept ---------------------------------------------------------------------------------------------------


def salvage(server: RunningServer, guid: str, output: Path | str) -> Finished:
    return run_command("generations", "salvage", guid, "--output", str(output), env=server.env)


@pytest.mark.parametrize("way", ["file={}", "url:get={}"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_another_kind_is_kept_and_salvaged(
    artist: ImageClient,
    provider_server: RunningServer,
    stand_in: RunningStandIn,
    prompt: str,
    tmp_path: Path,
    way: str,
    kind: str,
) -> None:
    refused = refused_twice(artist, stand_in, f"{prompt} [[fault:{way.format(kind)}]]")
    guid, output = kept_guid(refused), tmp_path / "salvaged"
    assert "pixyproxy generations salvage" in refused.message

    done = salvage(provider_server, guid, output)

    assert (done.status, done.stderr) == (0, "")
    assert output.read_bytes() == OTHER_FILES[kind]
    assert output.stat().st_mode & 0o777 == 0o600
    assert done.stdout.startswith(f"Saved the image as {output}: {len(OTHER_FILES[kind]):,} bytes, which look like ")
    lines = provider_server.wait_for_end_of(refused.call_id)
    assert [line for line in lines if f"pixyproxy generations salvage {guid} --output FILE" in line]


def test_an_answer_is_salvaged_by_the_guid_of_its_generation(
    artist: ImageClient, provider_server: RunningServer, stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    prompt += " [[fault:url:get=404]]"
    kept = provider_server.image_folder / ".aside" / kept_guid(refused_twice(artist, stand_in, prompt))
    with provider_server.database() as database, database.reading() as context:
        [row] = context.fetch_all("SELECT guid FROM generations WHERE image_guid = :guid", {"guid": kept.name})

    done = salvage(provider_server, row["guid"].upper(), tmp_path / "answer.json")

    assert done.status == 0
    assert (tmp_path / "answer.json").read_bytes() == kept.read_bytes()
    assert done.stdout.startswith("Saved the answer as it came as ")
    assert done.stdout.endswith("which look like JSON.\n")


@pytest.fixture
def keeper(tmp_path: Path) -> tuple[dict[str, str], str]:
    """The environment of a server that does not run, and a guid under which it has kept a GIF."""
    env = environment(tmp_path)
    prepare_database(env)
    guid = str(uuid.uuid4())
    body = {"data": [{"b64_json": base64.b64encode(OTHER_FILES["gif"]).decode()}]}
    LocalImageStore(tmp_path / "images").write_aside(guid, json.dumps(body).encode())
    return env, guid


def test_what_was_kept_can_go_to_standard_output(keeper: tuple[dict[str, str], str]) -> None:
    env, guid = keeper
    command = [sys.executable, "-m", "pixyproxy", "generations", "salvage", guid, "-o", "-"]
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    assert done.stdout == OTHER_FILES["gif"]
    with Image.open(io.BytesIO(done.stdout)) as picture:
        assert picture.format == "GIF"
    assert done.stderr.decode() == f"Saved the image: {len(done.stdout)} bytes, which look like a GIF image.\n"


def test_nothing_is_written_to_a_terminal(keeper: tuple[dict[str, str], str]) -> None:
    env, guid = keeper
    with at_a_terminal("generations", "salvage", guid, "--output", "-", env=env) as terminal:
        assert terminal.end() == 2
    assert "is not written to a terminal" in terminal.text
    assert "GIF" not in terminal.text


def test_nothing_is_overwritten(keeper: tuple[dict[str, str], str], tmp_path: Path) -> None:
    env, guid = keeper
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("mine", "link", "images"):
        done = run_command("generations", "salvage", guid, "--output", str(tmp_path / name), env=env)
        assert (done.status, done.stdout) == (2, "")
        assert done.stderr == f"pixyproxy: {tmp_path / name} exists already.\n"
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("path", ["none/file", "none/", "/dev/full/file"])
def test_a_file_that_cannot_be_written_is_said_to_be(keeper: tuple[dict[str, str], str], path: str) -> None:
    env, guid = keeper
    done = run_command("generations", "salvage", guid, "--output", path, env=env)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pixyproxy: {path} cannot be written: ")


def test_a_file_that_has_no_room_is_removed(keeper: tuple[dict[str, str], str], tmp_path: Path) -> None:
    env, guid = keeper
    LocalImageStore(tmp_path / "images").write_aside(guid, bytes(3 * 1024 * 1024))
    output = tmp_path / "salvaged"
    program = ["bash", "-c", 'ulimit -f 2048; trap "" XFSZ; exec "$0" -m pixyproxy "$@"', sys.executable]
    command = [*program, "generations", "salvage", guid, "--output", str(output)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pixyproxy: {output} cannot be written: File too large.\n"
    assert not output.exists()


def test_a_guid_with_nothing_kept_is_not_found(keeper: tuple[dict[str, str], str], tmp_path: Path) -> None:
    env, _ = keeper
    guid = str(uuid.uuid4())
    done = run_command("generations", "salvage", guid, "--output", str(tmp_path / "new"), env=env)
    assert (done.status, done.stdout) == (3, "")
    assert done.stderr == f"pixyproxy: No answer of the provider is kept aside under the guid {guid}.\n"
    assert not (tmp_path / "new").exists()


def test_what_is_no_guid_is_refused(keeper: tuple[dict[str, str], str], tmp_path: Path) -> None:
    env, _ = keeper
    done = run_command("generations", "salvage", "../../etc", "--output", str(tmp_path / "new"), env=env)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("pixyproxy: GUID: ")


def test_a_store_that_cannot_be_used_is_named(keeper: tuple[dict[str, str], str], tmp_path: Path) -> None:
    env, guid = keeper
    (tmp_path / "file").touch()
    broken = env | {"PIXYPROXY_IMAGE_STORE": str(tmp_path / "file")}
    done = run_command("generations", "salvage", guid, "--output", str(tmp_path / "new"), env=broken)
    assert done.status == 1
    assert "Traceback" not in done.stderr
