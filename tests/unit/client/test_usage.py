"""What both clients do with the usage: the test says what the server answers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.client import Quota, RetryPolicy, UsageGrouping, UsageRow
from tests.support.client_kinds import MakeClient
from tests.support.scripted_server import scripted_server
from tests.unit.client.test_client import TIMEOUT, Play, answer

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def play(make_client: MakeClient) -> Iterator[Play]:
    with (
        scripted_server() as server,
        make_client(server.address, timeout=TIMEOUT, retry=RetryPolicy(first_backoff=0.01)) as client,
    ):
        yield Play(server, client)


def test_a_summary_is_asked_for_and_read_whole(play: Play) -> None:
    call = play.begin(
        lambda: play.client.summarize_usage(
            start=NOON, end=NOON, group_by=[UsageGrouping.DAY, UsageGrouping.AUTHOR], author="ann"
        )
    )
    request, rpc = play.take("SummarizeUsage")
    fields: dict[str, Any] = {"author": "ann", "model": "m", "day": "2026-11-21", "images": 1, "unknown_outcomes": 2}
    fields |= {"input_tokens": 3, "output_tokens": 4, "nano_usd": 5, "images_without_cost": 6}
    answer(rpc, upb.SummarizeUsageResponse(rows=[upb.UsageRow(**fields), upb.UsageRow()]))

    noon = Timestamp(seconds=int(NOON.timestamp()))
    assert request == upb.SummarizeUsageRequest(
        start=noon, end=noon, group_by=["USAGE_GROUPING_DAY", "USAGE_GROUPING_AUTHOR"], author="ann"
    )
    assert call.result(TIMEOUT) == [UsageRow(**fields), UsageRow("", "", "", 0, 0, 0, 0, 0, 0)]


def test_by_default_everything_is_left_to_the_server(play: Play) -> None:
    call = play.begin(play.client.summarize_usage)
    request, rpc = play.take("SummarizeUsage")
    answer(rpc, upb.SummarizeUsageResponse())

    assert request == upb.SummarizeUsageRequest()
    assert call.result(TIMEOUT) == []


def test_quotas_are_asked_for_and_read_whole(play: Play) -> None:
    call = play.begin(lambda: play.client.get_quotas("ann"))
    request, rpc = play.take("GetQuota")
    resets_at = Timestamp(seconds=int(NOON.timestamp()))
    daily = upb.Quota(name="images_per_day", limit=4, used=2, reserved=1, resets_at=resets_at)
    answer(rpc, upb.GetQuotaResponse(quotas=[daily, upb.Quota(name="generations_at_once", limit=3)]))

    assert request == upb.GetQuotaRequest(author="ann")
    assert call.result(TIMEOUT) == [
        Quota("images_per_day", limit=4, used=2, reserved=1, resets_at=NOON),
        Quota("generations_at_once", limit=3, used=0, reserved=0, resets_at=None),
    ]


@pytest.mark.parametrize("times", [{"start": NOON.replace(tzinfo=None)}, {"end": NOON.replace(tzinfo=None)}])
def test_a_time_without_a_zone_is_refused(play: Play, times: dict[str, Any]) -> None:
    call = play.begin(lambda: play.client.summarize_usage(**times))
    with pytest.raises(ValueError, match="has no time zone"):
        call.result(TIMEOUT)
