"""Measures one database through a real server and the generated client."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pixyproxy_pb.v1 import usage_service_pb2 as upb
from pixyproxy_pb.v1.usage_service_pb2_grpc import UsageServiceStub
from pydantic import SecretStr

from benchmarks.million import corpus
from benchmarks.million.databases import MillionDatabase, fresh_database, opened
from benchmarks.million.loading import PASSWORD
from benchmarks.million.queries import ANYBODY, CALLERS, QUERIES, Query
from pixyproxy.core.fields import new_guid
from pixyproxy.core.models import Caller, Cost, ImageDetail, ImageFilter, PagePosition, Usage, UserCreate
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.image_conditions import scope_of
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.repositories.usage import Spending, UsageRepository
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.search.index import Indexed, SearchIndexRepository
from pixyproxy.data.search.postings import DEFAULT_LAYOUT
from pixyproxy.service.accounting import fold_some
from pixyproxy.service.indexer import take_step
from pixyproxy.service.page_tokens import PageTokens
from tests.support.image_client import ImageClient
from tests.support.servers import SERVE_ANEW, Login, RunningServer, running_server

_WARM_UPS = 3
_GUIDS = 200
_PAGES_COMPARED = 3
_DEEP_PAGE = 10_000
_DEEP_PAGE_SIZE = 10
_INSERTS = 300

LISTS, USAGE, INSERTS = PARTS = ("lists", "usage", "inserts")
SUMMARIES: dict[str, list[upb.UsageGrouping]] = {
    "in one sum": [],
    "by model": [upb.USAGE_GROUPING_MODEL],
    "by author": [upb.USAGE_GROUPING_AUTHOR],
    "by author and model": [upb.USAGE_GROUPING_AUTHOR, upb.USAGE_GROUPING_MODEL],
    "by day": [upb.USAGE_GROUPING_DAY],
}
_MODELS = ("gpt-image-2", "gpt-image-2.5-flare")
_USAGE_DAYS = 400


@dataclass(frozen=True)
class Times:
    """How long calls took, in milliseconds."""

    median: float
    p95: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Sum up single times."""
        return cls(statistics.median(seconds) * 1000, statistics.quantiles(seconds, n=20)[18] * 1000)


@dataclass(frozen=True)
class Compared:
    """A call's times, and those of GetImage in turn with it."""

    times: Times
    get: Times

    @property
    def ratio(self) -> float:
        """How many times as long as GetImage it took, by the medians."""
        return self.times.median / self.get.median


@dataclass(frozen=True)
class Inserts:
    """Milliseconds an image: adding one with and without the index, and sealing it later, in the background."""

    with_index: Times
    without_index: Times
    sealing: float

    @property
    def ratio(self) -> float:
        """All that an image costs with the index, against what it costs without."""
        return (self.with_index.median + self.sealing) / self.without_index.median


@dataclass
class Measured:
    """What was measured on one database.

    Attributes:
        label: the database's name and version.
        lists: times by query and caller.
        guids: what the first pages held, by query and caller.
        summaries: times of the usage of everybody in a month, by what it is grouped by.
        deep_pages: by caller, page 10,000 as against page 1, by their medians in milliseconds.
        inserts: what adding an image costs.
    """

    label: str
    lists: dict[tuple[str, str], Compared] = field(default_factory=dict)
    guids: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    summaries: dict[str, Compared] = field(default_factory=dict)
    deep_pages: dict[str, tuple[float, float]] = field(default_factory=dict)
    inserts: Inserts | None = None


def measure(database: MillionDatabase, runs: int, only: str | None) -> Measured:
    """Measure everything, or ``only`` one of ``PARTS``."""
    measured = Measured(f"{database.kind.label} {database.version}")
    if only in (None, LISTS):
        _measure_lists(database, runs, measured)
    if only in (None, USAGE):
        _measure_usage(database, runs, measured)
    if only in (None, INSERTS):
        with fresh_database(database) as fresh, opened(database) as behind:
            measured.inserts = _inserts(behind, fresh)
    return measured


# --- Lists -----------------------------------------------------------------------------------------------------------


def _measure_lists(database: MillionDatabase, runs: int, measured: Measured) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), {"PIXYPROXY_DATABASE_URL": database.url}, command=SERVE_ANEW) as server,
        opened(database) as behind,
    ):
        _remove_added(behind)  # by a run that was cut off
        for username, name in CALLERS.items():
            client = ImageClient(server, Login(username, PASSWORD) if username else None)
            guids = _visible_guids(behind, _caller(server, username))
            for query in QUERIES:
                key = query.name, name
                measured.lists[key] = _compare(client, guids, partial(client.page, **query.fields), runs)
                measured.guids[key] = _first_guids(client, query)
            deep_page = _deep_page(client, behind, _caller(server, username), runs)
            if deep_page is not None:
                measured.deep_pages[name] = deep_page
            print(f"{measured.label}: measured as {name}", flush=True)


def _compare(client: ImageClient, guids: list[str], call: Callable[[], object], runs: int) -> Compared:
    gets, calls = [], []
    for number in range(-_WARM_UPS, runs):
        guid = guids[number % len(guids)]
        get = _seconds(lambda guid=guid: client.get(guid))  # type: ignore[misc]
        other = _seconds(call)
        if number >= 0:
            gets.append(get)
            calls.append(other)
    return Compared(Times.of(calls), Times.of(gets))


def _first_guids(client: ImageClient, query: Query) -> list[str]:
    guids: list[str] = []
    token = ""
    for _ in range(_PAGES_COMPARED):
        page = client.page(**query.fields, page_token=token)
        guids += [image.guid for image in page.images]
        token = page.next_page_token
        if not token:
            break
    return guids


def _deep_page(client: ImageClient, behind: Database, caller: Caller | None, runs: int) -> tuple[float, float] | None:
    """Measure page 1 and page 10,000 in turn; None where there are fewer.

    The token is made here: to walk there would take ten thousand calls.
    """
    parameters: dict[str, Any] = {}
    scope = scope_of(caller, parameters)
    with behind.reading() as context:
        key = ServerValueRepository(context).get("page_token_key")
        row = context.fetch_one(
            f"SELECT created_at, id FROM images WHERE {scope} ORDER BY created_at DESC, id DESC "
            f"LIMIT 1 OFFSET {(_DEEP_PAGE - 1) * _DEEP_PAGE_SIZE - 1}",
            parameters,
        )
    assert key is not None
    if row is None:
        return None
    token = PageTokens(key).seal(PagePosition(row["created_at"], row["id"]), ImageFilter(), caller)
    first, deep = [], []
    for number in range(-_WARM_UPS, runs):
        times = [
            _seconds(lambda token=token: client.page(page_size=_DEEP_PAGE_SIZE, page_token=token))  # type: ignore[misc]
            for token in ("", token)
        ]
        if number >= 0:
            first.append(times[0])
            deep.append(times[1])
    return Times.of(first).median, Times.of(deep).median


def _caller(server: RunningServer, username: str) -> Caller | None:
    return None if username == ANYBODY else server.caller(Login(username, PASSWORD))


def _visible_guids(behind: Database, caller: Caller | None) -> list[str]:
    """Return guids of images from all over the database."""
    parameters: dict[str, Any] = {}
    scope = scope_of(caller, parameters)
    with behind.reading() as context:
        row = context.fetch_one("SELECT MAX(id) AS newest FROM images", {})
        assert row is not None
        step = max(1, row["newest"] // _GUIDS)
        ids = [
            context.fetch_one(
                f"SELECT guid FROM images WHERE id >= {start} AND {scope} ORDER BY id LIMIT 1", parameters
            )
            for start in range(1, row["newest"], step)
        ]
    return [row["guid"] for row in ids if row is not None]


# --- Usage -----------------------------------------------------------------------------------------------------------


def _measure_usage(database: MillionDatabase, runs: int, measured: Measured) -> None:
    """Sum up a month of a year in which each author has used each model every day."""
    with opened(database) as behind:
        _add_usage(behind)
        with (
            tempfile.TemporaryDirectory() as folder,
            running_server(Path(folder), {"PIXYPROXY_DATABASE_URL": database.url}, command=SERVE_ANEW) as server,
        ):
            client = ImageClient(server, Login(corpus.ADMIN, PASSWORD))
            stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
            guids = _visible_guids(behind, _caller(server, corpus.ADMIN))
            start, end = (corpus.FIRST.replace(month=month) for month in (11, 12))
            for name, groups in SUMMARIES.items():
                request = upb.SummarizeUsageRequest(start=start, end=end, group_by=groups)
                summarize = partial(stub.SummarizeUsage, request, metadata=client.metadata)
                assert summarize().rows
                measured.summaries[name] = _compare(client, guids, summarize, runs)
    print(f"{measured.label}: measured usage", flush=True)


def _add_usage(behind: Database) -> None:
    with behind.reading() as context:
        if context.fetch_value("SELECT COUNT(*) FROM usage_days", {}):
            return
        author_ids = [UserRepository(context).get(name).id for name in corpus.AUTHORS]
    days = [corpus.FIRST + timedelta(days=number) for number in range(_USAGE_DAYS)]
    usage = Usage(input_tokens=13, output_tokens=1056, total_tokens=1069)
    cost = Cost(nano_usd=31_745_000, price_list="of the benchmark")
    for day in days:
        with behind.transaction() as context:
            spendings = [Spending.of(author, day, model, usage, cost) for author in author_ids for model in _MODELS]
            UsageRepository(context).add(spendings)
            context.commit()
        fold_some(behind, longest_tail=0)


# --- Inserts ---------------------------------------------------------------------------------------------------------


class _NoIndex(SearchIndexRepository):
    """What adding an image would be without the index."""

    def add(self, image_id: int, image: Indexed) -> None:
        """Index nothing."""


def _inserts(behind: Database, fresh: Database) -> Inserts:
    """Add images, in a transaction each, with and without the index in turn, and remove them again."""
    with behind.reading() as context:
        author_id = UserRepository(context).get(corpus.AUTHORS[0]).id
    times: dict[bool, list[float]] = {True: [], False: []}
    try:
        for number, made in enumerate(corpus.images(2 * _INSERTS)):
            detail = made.detail.model_copy(update={"guid": new_guid(), "created_at": corpus.LAST})
            started = time.perf_counter()
            _insert(behind, detail, author_id, is_indexed=number % 2 == 0)
            times[number % 2 == 0].append(time.perf_counter() - started)
    finally:
        _remove_added(behind)
    return Inserts(Times.of(times[True]), Times.of(times[False]), _background(fresh))


def _insert(behind: Database, detail: ImageDetail, author_id: int, *, is_indexed: bool) -> None:
    with behind.transaction() as context:
        repository = ImageRepository(context)
        if not is_indexed:
            repository._index = _NoIndex(context)
        repository.insert(detail, author_id)
        context.commit()


def _remove_added(behind: Database) -> None:
    """Remove the images that were added here; they are never sealed."""
    with behind.transaction() as context:
        context.execute("DELETE FROM images WHERE created_at = :last", {"last": corpus.LAST})
        context.execute("DELETE FROM image_tail", {})
        context.commit()


def _background(fresh: Database) -> float:
    """Return the milliseconds an image that the indexer takes to fill a whole block."""
    init.upgrade(fresh)
    user = UserCreate(username="author", password=SecretStr("none"))
    count = 1 << DEFAULT_LAYOUT.block_bits
    with fresh.transaction() as context:
        author_id = UserRepository(context).insert(user).id
        context.commit()
    made = corpus.images(count)
    while some := list(itertools.islice(made, 1_000)):
        with fresh.transaction() as context:
            for image in some:
                ImageRepository(context).insert(image.detail, author_id)
            context.commit()
    started = time.perf_counter()
    while take_step(fresh):
        pass
    return (time.perf_counter() - started) * 1000 / count


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
