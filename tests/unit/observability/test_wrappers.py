"""What the wrappers say of what they wrap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from pixyproxy.core.exceptions import (
    ConstraintViolationError,
    ContentDamagedError,
    DBConnectionError,
    ProviderUnavailableError,
)
from pixyproxy.data.database import Database
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, OnPartial, ignore_partial
from pixyproxy.observability.database import ObservedDatabase
from pixyproxy.observability.generator import ObservedGenerator
from pixyproxy.observability.metrics import GenerationMetrics
from pixyproxy.observability.store import observed_store

_GUID = "123e4567-e89b-42d3-a456-426614174000"
_REQUEST = GenerationRequest("a prompt", "a-model", "auto", "auto", "png", "auto", "an-author")


@dataclass
class Recorder:
    """Keeps what it is told."""

    operations: list[tuple[str, str]] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)

    def record(
        self, operation: str, began: float, ended: float, error: BaseException | None = None, detail: str = ""
    ) -> None:
        assert 0 < began <= ended
        self.operations.append((operation, type(error).__name__ if error else "well"))

    def held(self, seconds: float) -> None:
        assert seconds >= 0
        self.amounts.append(seconds)

    def moved(self, direction: str, count: int) -> None:
        self.operations.append((direction, f"{count} bytes"))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def database(tmp_path: Path, recorder: Recorder) -> Iterator[Database]:
    plain = SQLiteDatabase(tmp_path / "x.db", pool_size=1, timeout=0.01)
    with closing(ObservedDatabase(plain, recorder.record, recorder.held)) as observed:
        with observed.transaction() as context:
            context.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT UNIQUE)", {})
            context.commit()
        recorder.operations.clear()
        recorder.amounts.clear()
        yield observed


def test_each_statement_is_recorded(database: Database, recorder: Recorder) -> None:
    with database.transaction() as context:
        context.insert("INSERT INTO things (name) VALUES (:name)", {"name": "a"})
        context.execute_many("INSERT INTO things (name) VALUES (:name)", [{"name": "b"}, {"name": "c"}])
        context.execute("DELETE FROM things WHERE name = :name", {"name": "c"})
        context.commit()
    with database.reading() as context:
        assert context.fetch_one("SELECT count(*) AS count FROM things", {}) == {"count": 2}

    names = ["wait", "insert", "execute_many", "execute", "commit", "wait", "fetch"]
    assert recorder.operations == [(name, "well") for name in names]
    assert len(recorder.amounts) == 2


def test_what_is_not_committed_is_rolled_back_all_the_same(database: Database, recorder: Recorder) -> None:
    def insert_twice() -> None:
        with database.transaction() as context:
            context.insert("INSERT INTO things (name) VALUES (:name)", {"name": "a"})
            context.insert("INSERT INTO things (name) VALUES (:name)", {"name": "a"})

    with pytest.raises(ConstraintViolationError):
        insert_twice()
    with database.reading() as context:
        assert context.fetch_all("SELECT * FROM things", {}) == []
    assert recorder.operations[2] == ("insert", "ConstraintViolationError")
    assert len(recorder.amounts) == 2, "the connection was given back"


def test_a_wait_in_vain_is_recorded(database: Database, recorder: Recorder) -> None:
    with database.reading(), pytest.raises(DBConnectionError), database.reading():
        pass
    assert recorder.operations == [("wait", "well"), ("wait", "DBConnectionError")]
    assert len(recorder.amounts) == 1, "nothing was held that was never had"


def test_the_reads_of_an_image_are_recorded_together(tmp_path: Path, recorder: Recorder) -> None:
    store = observed_store(LocalImageStore(tmp_path), recorder.record, recorder.moved)
    store.write(_GUID, bytes(100))
    with store.open(_GUID) as reader:
        while reader.read(30):
            pass
    store.delete(_GUID)
    with pytest.raises(ContentDamagedError):
        store.open(_GUID)
    assert recorder.operations == [
        ("write", "well"),
        ("write", "100 bytes"),
        ("open", "well"),
        ("read", "well"),
        ("read", "100 bytes"),
        ("delete", "well"),
        ("open", "ContentDamagedError"),
    ]


def test_provider_requests_are_counted_by_outcome() -> None:
    class Failing:
        def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
            assert value("pixyproxy_provider_requests_under_way") == 1
            raise ProviderUnavailableError("It is down.")

        def close(self) -> None:
            pass

    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, labels)

    generator = ObservedGenerator(Failing(), GenerationMetrics().provider_request)
    with pytest.raises(ProviderUnavailableError):
        generator.generate(_REQUEST)
    assert value("pixyproxy_provider_requests_under_way") == 0
    assert value("pixyproxy_provider_requests_total", outcome="ProviderUnavailableError") == 1
    assert value("pixyproxy_provider_requests_total", outcome="made") == 0
    assert value("pixyproxy_provider_request_seconds_count") == 1
