"""The models of usage and quotas."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.client.models import copied


class UsageGrouping(IntEnum):
    """What the rows of a summary may be grouped by. The numbers are those of the API."""

    AUTHOR = 1
    MODEL = 2
    DAY = 3


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What was spent in a group.

    Attributes:
        author: the username of the author; empty unless the rows are grouped by author.
        model: the model; empty unless the rows are grouped by model.
        day: the day in UTC as YYYY-MM-DD; empty unless the rows are grouped by day.
        images: how many images were generated.
        unknown_outcomes: how many generations may have been billed without an image; they are in no other number.
        input_tokens: the input tokens of the images, as far as they are known.
        output_tokens: the output tokens of the images, as far as they are known.
        nano_usd: the costs of the images, as far as they are known, in billionths of a US dollar.
        images_without_cost: how many of the images have an unknown cost.
    """

    author: str
    model: str
    day: str
    images: int
    unknown_outcomes: int
    input_tokens: int
    output_tokens: int
    nano_usd: int
    images_without_cost: int


def to_rows(summary: upb.SummarizeUsageResponse) -> list[UsageRow]:
    """Convert a message."""
    return [copied(UsageRow, row) for row in summary.rows]


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit of an author, and what is used of it.

    Attributes:
        name: what is limited: ``usd_per_day``, ``images_per_day`` or ``generations_at_once``.
        limit: the limit, in billionths of a US dollar for ``usd_per_day``, otherwise a count.
        used: what is used of it; it may exceed the limit.
        reserved: what submitted generations may use of it.
        resets_at: when ``used`` becomes 0; None for ``generations_at_once``.
    """

    name: str
    limit: int
    used: int
    reserved: int
    resets_at: datetime | None


def to_quotas(answer: upb.GetQuotaResponse) -> list[Quota]:
    """Convert a message."""
    return [
        copied(Quota, quota, resets_at=quota.resets_at.ToDatetime(UTC) if quota.HasField("resets_at") else None)
        for quota in answer.quotas
    ]
