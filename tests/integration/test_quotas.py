"""Quotas through a real server: what operators set, what callers see, and what is refused."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb
from pixyproxy_pb.v1.usage_service_pb2_grpc import UsageServiceStub

from pixyproxy.client import PixyProxyClient
from tests.integration.conftest import asking
from tests.support.generation_client import GenerationClient
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, refusal
from tests.support.servers import Login, Metadata, RunningServer, environment, run_command, running_server
from tests.support.typed import at_a_terminal
from tests.support.waiting import wait_out_midnight


def quotas(server: RunningServer, metadata: Metadata, author: str = "") -> list[upb.Quota]:
    stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
    answer: upb.GetQuotaResponse = stub.GetQuota(upb.GetQuotaRequest(author=author), metadata=metadata, timeout=TIMEOUT)
    return list(answer.quotas)


def limit(server: RunningServer, login: Login, *options: str) -> str:
    done = run_command("user", "limit", login.username, *options, env=server.env)
    assert (done.status, done.stderr) == (0, "")
    return done.stdout


def test_a_quota_is_used_up_and_refuses(any_server: RunningServer, prompt: str) -> None:
    wait_out_midnight()
    server, root, login = any_server, any_server.admin, any_server.new_login()
    assert quotas(server, login.metadata) == []
    shown = limit(server, login, "--usd-per-day", "50.5", "--images-per-day", "1", "--generations-at-once", "8")
    assert shown == "usd_per_day         50.5\nimages_per_day      1\ngenerations_at_once 8\n"
    client, request_id = ImageClient(server, login), str(uuid.uuid4())
    request = pb.CreateImageRequest(prompt=prompt, request_id=request_id)
    made = client.stub.CreateImage(request, metadata=login.metadata, timeout=TIMEOUT).image

    refused = client.refused(pb.CreateImageRequest(prompt=prompt))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXHAUSTED")
    assert refused.metadata == {"quota": "images_per_day"}
    assert refused.quota == [f"user:{login.username}"]
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 86_400
    queuing = gpb.CreateGenerationRequest(request=pb.CreateImageRequest(prompt=prompt))
    generations = GenerationClient(server, login)
    assert refusal(generations.stub.CreateGeneration, queuing, login.metadata).reason == "QUOTA_EXHAUSTED"
    # The same request costs nothing again.
    again = client.stub.CreateImage(request, metadata=login.metadata, timeout=TIMEOUT).image
    assert again.guid == made.guid

    read = quotas(server, login.metadata)
    # The cost of what is drawn offline is unknown, so that it is charged with the most that it may be.
    assert [(quota.name, quota.limit, quota.used > 0, quota.reserved) for quota in read] == [
        ("usd_per_day", 50_500_000_000, True, 0),
        ("images_per_day", 1, True, 0),
        ("generations_at_once", 8, False, 0),
    ]
    until_reset = read[0].resets_at.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(0) < until_reset <= timedelta(days=1)
    assert not read[2].HasField("resets_at")
    assert quotas(server, root.metadata, login.username) == read
    assert quotas(server, server.new_login().metadata, login.username) == []
    assert quotas(server, root.metadata, "nobody of this name") == []

    # A limit holds and goes at once.
    kept = limit(server, login, "--images-per-day", "default", "--usd-per-day", "unlimited")
    assert kept == "usd_per_day         unlimited\nimages_per_day      default\ngenerations_at_once 8\n"
    assert limit(server, login) == kept
    client.create(prompt)


def test_a_model_without_a_price_is_refused_where_costs_are_limited(server: RunningServer, prompt: str) -> None:
    login = server.new_login()
    limit(server, login, "--usd-per-day", "50")
    request = pb.CreateImageRequest(prompt=prompt, options=pb.GenerationOptions(model="who-knows"))
    refused = ImageClient(server, login).refused(request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [*refused.violations] == ["options.model"]
    detached = GenerationClient(server, login).refused("CreateGeneration", gpb.CreateGenerationRequest(request=request))
    assert (detached.reason, [*detached.violations]) == ("INVALID_FIELD", ["request.options.model"])


def test_edits_cost_what_they_cost_and_imports_nothing(
    provider_server: RunningServer, tmp_path: Path, prompt: str
) -> None:
    wait_out_midnight()
    server, login = provider_server, provider_server.new_login()
    limit(server, login, "--images-per-day", "2", "--usd-per-day", "2")
    with PixyProxyClient(server.address, username=login.username, password=login.password) as client:
        made = client.create_image(prompt)
        client.fetch_content(made.guid, tmp_path / "image")
        client.import_image(tmp_path / "image")
        edited = client.create_image(prompt, inputs=[made.guid])
        usd, images = client.get_quotas()
    assert (images.name, images.limit, images.used, images.reserved) == ("images_per_day", 2, 2, 0)
    assert images.resets_at is not None
    assert made.cost is not None
    assert edited.cost is not None
    assert (usd.name, usd.used) == ("usd_per_day", made.cost.nano_usd + edited.cost.nano_usd)


def test_it_needs_credentials_and_a_valid_name(server: RunningServer) -> None:
    stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
    assert refusal(stub.GetQuota, upb.GetQuotaRequest()).reason == "CREDENTIALS_MISSING"
    wrong = refusal(stub.GetQuota, upb.GetQuotaRequest(author="a:b"), server.admin.metadata)
    assert [*wrong.violations] == ["author"]


def test_settings_limit_everybody(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    defaults = {"PIXYPROXY_USER_IMAGES_PER_DAY": "0", "PIXYPROXY_USER_USD_PER_DAY": "0.25"}
    with running_server(tmp_path, asking(stand_in) | defaults) as server:
        login = server.new_login()
        assert [(quota.name, quota.limit) for quota in quotas(server, login.metadata)] == [
            ("usd_per_day", 250_000_000),
            ("images_per_day", 0),
        ]
        limit(server, login, "--images-per-day", "unlimited")
        # By default, an image may cost more than that.
        assert ImageClient(server, login).refused(pb.CreateImageRequest(prompt=prompt)).metadata == {
            "quota": "usd_per_day"
        }
        low = pb.GenerationOptions(quality="low", size="1024x1024")
        request = pb.CreateImageRequest(prompt=prompt, options=low)
        assert ImageClient(server, login).stub.CreateImage(request, metadata=login.metadata, timeout=TIMEOUT).image.guid


# --- The commands ----------------------------------------------------------------------------------------------------


def test_the_command_shows_quotas(server: RunningServer, tmp_path: Path) -> None:
    login = server.new_login()
    limit(server, login, "--usd-per-day", "1.5", "--generations-at-once", "2")
    own = {
        "PIXYPROXY_SERVER": server.address,
        "PIXYPROXY_USER": login.username,
        "PIXYPROXY_PASSWORD": login.password,
        "HOME": str(tmp_path),
    }
    env = environment(tmp_path, own)

    first, second = map(json.loads, run_command("quota", "--json", env=env).stdout.splitlines())
    assert (first["name"], first["limit"], first["used"], first["reserved"]) == ("usd_per_day", 1_500_000_000, 0, 0)
    assert first["resets_at"].endswith("T00:00:00.000000Z")
    assert second == {"name": "generations_at_once", "limit": 2, "used": 0, "reserved": 0, "resets_at": None}
    line = run_command("quota", login.username, env=env).stdout.splitlines()[1]
    assert line == "generations_at_once\t2\t0\t0\t"
    with at_a_terminal("quota", env=environment(tmp_path, own | {"NO_COLOR": "1"})) as terminal:
        assert terminal.end() == 0
    assert "usd_per_day" in terminal.text
    assert "1.5000" in terminal.text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--usd-per-day", "-1"),
        ("--usd-per-day", "nan"),
        ("--usd-per-day", "0.0000000001"),
        ("--images-per-day", "1.5"),
        ("--images-per-day", "1e99"),
        ("--generations-at-once", "0"),
    ],
)
def test_an_absurd_limit_is_refused(tmp_path: Path, option: str, value: str) -> None:
    done = run_command("user", "limit", "admin", f"{option}={value}", env=environment(tmp_path))
    assert done.status == 2
    assert option in done.stderr
    assert "default or unlimited" in " ".join(done.stderr.split())


def test_an_unknown_user_has_no_limits(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert run_command("db", "init", env=env).status == 0
    for options in ([], ["--images-per-day", "1"]):
        done = run_command("user", "limit", "nobody", *options, env=env)
        assert (done.status, done.stdout) == (1, "")
        assert "There is no user nobody." in done.stderr
