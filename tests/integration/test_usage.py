"""SummarizeUsage and `pixyproxy usage`, through a real server on each database."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb
from pixyproxy_pb.v1.usage_service_pb2_grpc import UsageServiceStub

from pixyproxy.client import PixyProxyClient, UsageGrouping, UsageRow
from pixyproxy.core.fields import UserClass
from tests.integration.conftest import asking
from tests.support.database_servers import fresh_database
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, refusal
from tests.support.servers import Login, Metadata, RunningServer, environment, run_command, running_server
from tests.support.typed import at_a_terminal
from tests.support.waiting import wait_out_midnight

_FLARE = "gpt-image-2.5-flare"


@pytest.fixture(params=["sqlite", "mysql", "mariadb"])
def spending_server(request: pytest.FixtureRequest, tmp_path: Path, stand_in: RunningStandIn) -> Any:
    """A server on each kind of database, that asks the stand-in, and that nobody has used yet."""
    if request.param == "sqlite":
        with running_server(tmp_path, asking(stand_in)) as running:
            yield running
        return
    with (
        fresh_database(request.getfixturevalue(f"{request.param}_server")) as url,
        running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_DATABASE_URL": url}) as running,
    ):
        yield running


def summarize(server: RunningServer, metadata: Metadata, **fields: Any) -> list[upb.UsageRow]:
    stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
    answer: upb.SummarizeUsageResponse = stub.SummarizeUsage(
        upb.SummarizeUsageRequest(**fields), metadata=metadata, timeout=TIMEOUT
    )
    return list(answer.rows)


def test_what_is_spent_is_there_at_once_for_those_who_may_see_it(spending_server: RunningServer, prompt: str) -> None:
    wait_out_midnight()
    server, root = spending_server, spending_server.admin
    ann, bob = server.new_login(username="ann"), server.new_login(username="bob")
    made = [ImageClient(server, login).create(prompt) for login in (ann, ann, bob)]
    ImageClient(server, ann).delete(made[0].guid)
    ImageClient(server, ann).refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:drop]]"))
    cost, tokens = made[0].cost.nano_usd, made[0].usage
    assert cost > 0
    today = datetime.now(UTC).date().isoformat()

    def row(images: int, **fields: Any) -> upb.UsageRow:
        return upb.UsageRow(
            images=images,
            input_tokens=images * tokens.input_tokens,
            output_tokens=images * tokens.output_tokens,
            nano_usd=images * cost,
            **fields,
        )

    assert summarize(server, ann.metadata) == [row(2, unknown_outcomes=1)]
    assert summarize(server, bob.metadata) == [row(1)]
    assert summarize(server, root.metadata) == [row(3, unknown_outcomes=1)]
    by_author_and_model = [upb.USAGE_GROUPING_MODEL, upb.USAGE_GROUPING_AUTHOR]
    assert summarize(server, root.metadata, group_by=by_author_and_model) == [
        row(2, unknown_outcomes=1, author="ann", model=_FLARE),
        row(1, author="bob", model=_FLARE),
    ]
    assert summarize(server, root.metadata, group_by=[upb.USAGE_GROUPING_DAY], author="bob") == [row(1, day=today)]
    assert summarize(server, bob.metadata, group_by=[upb.USAGE_GROUPING_AUTHOR], author="ann") == []
    assert summarize(server, bob.metadata, author="ann") == [upb.UsageRow()]
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert summarize(server, root.metadata, start=yesterday - timedelta(days=3), end=yesterday) == [upb.UsageRow()]

    with PixyProxyClient(server.address, username=root.username, password=root.password) as client:
        [read] = client.summarize_usage(start=yesterday, group_by=[UsageGrouping.AUTHOR], author="bob")
    assert read == UsageRow(
        author="bob",
        model="",
        day="",
        images=1,
        unknown_outcomes=0,
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        nano_usd=cost,
        images_without_cost=0,
    )


def test_it_needs_credentials(server: RunningServer) -> None:
    stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
    assert refusal(stub.SummarizeUsage, upb.SummarizeUsageRequest()).reason == "CREDENTIALS_MISSING"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start": Timestamp(seconds=10), "end": Timestamp(seconds=9)}, "end"),
        ({"start": Timestamp(seconds=10), "end": Timestamp(seconds=10)}, "end"),
        ({"start": Timestamp(seconds=0), "end": Timestamp(seconds=400 * 86_400 + 1)}, "start"),
        ({"start": Timestamp(seconds=2**62)}, "start"),
        ({"end": Timestamp(seconds=-(2**62))}, "end"),
        ({"group_by": [upb.USAGE_GROUPING_DAY, upb.USAGE_GROUPING_UNSPECIFIED]}, "group_by[1]"),
        ({"group_by": [4]}, "group_by[0]"),
        ({"group_by": [3, 2, 3]}, "group_by[2]"),
        ({"author": "a:b"}, "author"),
        ({"author": "x" * 65}, "author"),
        ({"author": "a\nb"}, "author"),
    ],
)
def test_what_is_wrong_is_named(server: RunningServer, fields: dict[str, Any], field: str) -> None:
    stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
    refused = refusal(stub.SummarizeUsage, upb.SummarizeUsageRequest(**fields), server.admin.metadata)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [*refused.violations] == [field]


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spender(provider_server: RunningServer) -> Login:
    """Somebody with two images, of which one has an unknown cost, and an unknown outcome."""
    # The name is not fixed: where other tests come in between, this is done again on the same server.
    login = provider_server.new_login(UserClass.USER)
    client = ImageClient(provider_server, login)
    wait_out_midnight()
    client.create("a castle")
    client.create("a castle [[fault:no_usage]]")
    client.refused(pb.CreateImageRequest(prompt="a castle [[fault:drop]]"))
    return login


@pytest.fixture
def env(provider_server: RunningServer, spender: Login, tmp_path: Path) -> Callable[..., dict[str, str]]:
    signed_in = {
        "PIXYPROXY_SERVER": provider_server.address,
        "PIXYPROXY_USER": spender.username,
        "PIXYPROXY_PASSWORD": spender.password,
        "HOME": str(tmp_path),
    }
    return lambda **more: environment(tmp_path, signed_in | more)


def test_the_command_writes_json_csv_and_lines(
    provider_server: RunningServer, spender: Login, env: Callable[..., dict[str, str]]
) -> None:
    image = ImageClient(provider_server, spender).page(author=spender.username).images[0]
    day = image.created_at.ToDatetime(UTC).date().isoformat()
    tokens = 1 + len("a castle") // 4
    cost = tokens * 5_000 + 1_056 * 30_000
    expected = {
        "images": 2,
        "unknown_outcomes": 1,
        "input_tokens": tokens,
        "output_tokens": 1_056,
        "nano_usd": cost,
        "images_without_cost": 1,
    }

    as_json = run_command("usage", "--json", "--by", "day,author", env=env())
    assert json.loads(as_json.stdout) == {"author": spender.username, "model": "", "day": day, **expected}
    as_csv = run_command("usage", "--csv", "--by", "model", "--since", day, "--until", day, env=env())
    texts = {name: str(number) for name, number in expected.items()}
    assert list(csv.DictReader(io.StringIO(as_csv.stdout))) == [{"model": _FLARE, **texts}]
    lines = run_command("usage", env=env())
    assert lines.stdout == "\t".join([day, *texts.values()]) + "\n"
    total = run_command("usage", "--by", "", env=env())
    assert total.stdout == "\t".join(texts.values()) + "\n"
    assert run_command("usage", "--author", "nobody", env=env()).stdout == ""


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_terminal_shows_a_table_with_bars(env: Callable[..., dict[str, str]], columns: int) -> None:
    with at_a_terminal("usage", "--by", "author,model", env=env(NO_COLOR="1"), columns=columns) as terminal:
        assert terminal.end() == 0
    header, row, *_, total = terminal.text.strip().splitlines()
    assert header.split()[:2] == ["AUTHOR", "MODEL"]
    assert "UNKNOWN" in header
    assert "NO COST" in header
    assert "0.0317" in row
    assert "█" in row
    assert total.split()[:2] == ["TOTAL", "2"]
    assert max(map(len, terminal.text.splitlines())) < columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "colour"], "'colour' is not one of author, model and day."),
        (["--by", "day,day"], "--by: must not be repeated"),
        (["--since", "yesterday"], "'yesterday' is not a date like 2026-11-21."),
        (["--since", "2026-02-01", "--until", "2026-01-01"], "--until: must be later than start"),
        (["--since", "9999-12-01"], "--since: must be earlier than end, which is the present by default"),
        (["--since", "2024-01-01", "--until", "2026-01-01"], "--since: must be at most 400 days before end"),
        (["--author", "a:b"], "--author: must not contain a colon"),
        (["--json", "--csv"], "--json and --csv exclude each other."),
    ],
)
def test_a_wrong_argument_is_named(env: Callable[..., dict[str, str]], arguments: list[str], message: str) -> None:
    done = run_command("usage", *arguments, env=env())
    assert done.status == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_the_last_day_of_all_is_a_day(env: Callable[..., dict[str, str]]) -> None:
    done = run_command("usage", "--since", "9999-12-01", "--until", "9999-12-31", env=env())
    assert (done.status, done.stdout) == (0, "")
