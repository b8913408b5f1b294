"""What images cost: by the provider's answers, an operator's price list, and after a crash."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import Cost, PixyProxyClient
from tests.integration.conftest import asking
from tests.support.image_client import SMALL, ImageClient
from tests.support.metrics import METRICS_ON, scrape
from tests.support.openai_stand_in import RunningStandIn
from tests.support.recorded_answers import RECORDED_ANSWERS, RecordedAnswer
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, environment, run_command, running_server
from tests.support.waiting import wait_until

# Models that the stand-in does not have are asked for under the name of one that it has.
_MODELS = ("gpt-image-2", "gpt-image-2.5-flare", "gpt-image-2.6-flare")
_PRICES = """
name = "ours-1"

[models."gpt-image-2.5-flare"]
text_input = 0
image_output = 0.0005

[models."gpt-image-2"]
text_input = 0
image_input = 0
image_output = 0
"""


def answering(answer: RecordedAnswer) -> str:
    """The control word for which the stand-in answers with the recorded usage."""
    return f"[[fault:rightly:usage64={base64.urlsafe_b64encode(json.dumps(answer.usage).encode()).decode()}]]"


@pytest.mark.parametrize("answer", [answer for answer in RECORDED_ANSWERS if answer.model in _MODELS], ids=str)
def test_an_image_has_the_cost_of_the_providers_answer(
    provider_server: RunningServer, artist: ImageClient, prompt: str, answer: RecordedAnswer
) -> None:
    options = pb.GenerationOptions(size="64x64", model=answer.model, partial_images=int(answer.is_streamed))
    inputs = [pb.ImageInput(guid=artist.create("a source").guid)] if answer.is_edit else []

    made = artist.create(f"{prompt} {answering(answer)}", options=options, inputs=inputs)

    assert made.HasField("cost") == (answer.nano_usd is not None)
    if answer.nano_usd is not None:
        assert made.cost == pb.Cost(nano_usd=answer.nano_usd, price_list="2026-11-21")
    assert artist.get(made.guid) == made
    assert artist.login is not None
    with PixyProxyClient(
        provider_server.address, username=artist.login.username, password=artist.login.password
    ) as client:
        cost = client.get_image(made.guid).cost
    assert cost == (None if answer.nano_usd is None else Cost(answer.nano_usd, "2026-11-21"))


def test_a_drawing_of_the_server_itself_has_no_cost(server: RunningServer) -> None:
    assert not ImageClient(server, server.admin).create("a castle").HasField("cost")


def test_the_commands_show_the_cost(provider_server: RunningServer, artist: ImageClient, prompt: str) -> None:
    made = artist.create(f"{prompt} {answering(RECORDED_ANSWERS[0])}")
    assert artist.login is not None
    settings = {
        "PIXYPROXY_SERVER": provider_server.address,
        "PIXYPROXY_USER": artist.login.username,
        "PIXYPROXY_PASSWORD": artist.login.password,
    }
    shown = run_command("get", made.guid, env=environment(provider_server.folder, settings))
    assert "cost        $0.031745 (prices of 2026-11-21)\n" in shown.stdout
    as_json = run_command("get", made.guid, "--json", env=environment(provider_server.folder, settings))
    assert json.loads(as_json.stdout)["cost"] == {"nano_usd": 31_745_000, "price_list": "2026-11-21"}


# --- An operator's price list ----------------------------------------------------------------------------------------


@pytest.fixture
def metered(tmp_path: Path, stand_in: RunningStandIn) -> Iterator[RunningServer]:
    """A server with a price list of its operator."""
    path = tmp_path / "prices.toml"
    path.write_text(_PRICES)
    with running_server(
        tmp_path / "server", METRICS_ON | asking(stand_in) | {"PIXYPROXY_PRICE_LIST": str(path)}
    ) as running:
        yield running


def test_an_operators_list_is_in_the_place_of_ours(metered: RunningServer, prompt: str) -> None:
    client = ImageClient(metered, metered.admin)

    costs = [
        client.create(prompt, options=pb.GenerationOptions(size="64x64", model=model)).cost
        for model in ("gpt-image-2.5-flare", "gpt-image-2", "gpt-image-2.5-sunburst")
    ]

    # 1,056 * 0.5; nothing for a model that is free; and none for a model that is not in the list.
    assert costs == [pb.Cost(nano_usd=528, price_list="ours-1"), pb.Cost(price_list="ours-1"), pb.Cost()]


def test_what_is_spent_is_counted_by_model(metered: RunningServer, prompt: str) -> None:
    client = ImageClient(metered, metered.admin)
    for _ in range(2):
        client.create(prompt)
    client.create(prompt, options=pb.GenerationOptions(size="64x64", model="gpt-image-2.6-flare"))

    name = "pixyproxy_generation_cost_dollars_total"
    spent = pytest.approx(2 * 528e-9)

    def is_counted() -> bool:
        # Each a moment after its caller was told, by a thread of its own.
        shown = scrape(metered)
        without = shown.total("pixyproxy_generation_images_without_cost_total")
        return without == 1 and shown.total(name, model="gpt-image-2.5-flare") == spent

    wait_until(is_counted, TIMEOUT, "the spend")
    shown = scrape(metered)
    assert shown.total(name, model="gpt-image-2.6-flare") == 0
    assert {label for sample in shown.samples if sample.name == name for label in sample.labels} <= {"model", "pid"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_list_with_errors_is_refused_at_the_start(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(_PRICES + "text_output = -1\ncached = 1\n")
    settings = {"PIXYPROXY_PRICE_LIST": str(path), "PIXYPROXY_WORKERS": workers}

    done = run_command("serve", env=environment(tmp_path, settings))

    assert done.status == 1
    assert f"pixyproxy: PIXYPROXY_PRICE_LIST: {path}, line 12: models.gpt-image-2.text_output: must be" in done.stderr
    assert f"{path}, line 13: models.gpt-image-2.cached: is not a key of a price list." in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening on" not in done.stdout


# --- After a crash, and after an update ------------------------------------------------------------------------------


def test_an_image_that_recovery_commits_has_its_cost(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    settings = asking(stand_in)
    with running_server(tmp_path, settings) as first:
        database = Path(first.folder / "pixyproxy.db")
        call = None
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            client = ImageClient(first, first.admin)
            held = f"{prompt} [[fault:hold:usage64={answering(RECORDED_ANSWERS[0]).partition('usage64=')[2]}"
            call = client.stub.CreateImage.future(
                pb.CreateImageRequest(prompt=held, options=SMALL), metadata=client.metadata, timeout=TIMEOUT
            )
            wait_until(lambda: stand_in.count(held), TIMEOUT, "the submission")
            other.execute("BEGIN IMMEDIATE")  # The image can be stored, and not committed.
            stand_in.release(held)
            wait_until(first.image_files, TIMEOUT, "the bytes")
            first.kill()
        call.cancel()
    with running_server(tmp_path, settings) as second:
        client = ImageClient(second, second.admin)
        wait_until(client.guids, TIMEOUT, "the image to be committed")
        [guid] = client.guids()
        assert client.get(guid).cost == pb.Cost(nano_usd=31_745_000, price_list="2026-11-21")


def test_images_of_an_earlier_release_get_a_cost_in_the_background(tmp_path: Path, stand_in: RunningStandIn) -> None:
    with running_server(tmp_path, asking(stand_in)) as first:
        made = ImageClient(first, first.admin).create("a castle")
    with closing(sqlite3.connect(tmp_path / "pixyproxy.db", isolation_level=None)) as database:
        # As if it had been stored by an earlier release.
        database.execute("UPDATE images SET cost_nano_usd = NULL, price_list = NULL, is_accounted = 0")
    with running_server(tmp_path, asking(stand_in)) as second:
        client = ImageClient(second, second.admin)
        wait_until(lambda: client.get(made.guid).HasField("cost"), TIMEOUT, "the cost")
        assert client.get(made.guid) == made
