"""What the store in an object store does when the network or the other side goes wrong: S3, behind a faulty proxy."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator

import pytest

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    PixyProxyException,
    StorageFullError,
    StorageMisconfiguredError,
    StorageUnavailableError,
)
from pixyproxy.data.stores.bucket_address import BucketAddress
from pixyproxy.data.stores.object_image_store import ObjectImageStore
from tests.contract.object_stores import fresh_store, fresh_url, store_at
from tests.support import faulty_http as http
from tests.support.addresses import free_addresses
from tests.support.faulty_http import Fault, FaultyHttp, faulty_http
from tests.support.object_stores import RunningObjectStore
from tests.support.waiting import wait_until

GUID = "123e4567-e89b-42d3-a456-426614174000"
KEY = f"12/3e/{GUID}"
CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(3 * 1024 * 1024 + 7)
PATIENCE = 20
"""Seconds that a store waits whose requests come through."""


@pytest.fixture
def network(s3_server: RunningObjectStore) -> Iterator[FaultyHttp]:
    with faulty_http(s3_server.port) as network:
        yield network


@pytest.fixture
def url(s3_server: RunningObjectStore, network: FaultyHttp, monkeypatch: pytest.MonkeyPatch) -> str:
    return fresh_url(s3_server, monkeypatch, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{network.port}"})


@pytest.fixture
def store(url: str) -> ObjectImageStore:
    return store_at(url, timeout=PATIENCE)


@pytest.fixture
def impatient(url: str) -> ObjectImageStore:
    """The same store, for requests that are repeated in vain until its time is over."""
    return store_at(url, timeout=0.5)


def read_all(store: ObjectImageStore) -> bytes:
    chunks = []
    with store.open(GUID) as reader:
        while chunk := reader.read(CHUNK):
            chunks.append(chunk)
    return b"".join(chunks)


USES: dict[str, tuple[str, Callable[[ObjectImageStore], object]]] = {
    "open": ("GET", lambda store: store.open(GUID)),
    "write": ("PUT", lambda store: store.write(GUID, b"other bytes")),
    "delete": ("DELETE", lambda store: store.delete(GUID)),
    "room": ("PUT", lambda store: store.require_room(1)),
    "write manifest": ("PUT", lambda store: store.write_manifest(GUID, "other")),
    "read manifest": ("GET", lambda store: store.read_manifest(GUID)),
    "delete manifest": ("DELETE", lambda store: store.delete_manifest(GUID)),
    "list manifests": ("GET", lambda store: store.list_manifests()),
    "write aside": ("PUT", lambda store: store.write_aside(GUID, b"answer")),
    "read aside": ("GET", lambda store: store.read_aside(GUID)),
    "list aside": ("GET", lambda store: store.list_aside()),
}


# --- Everything ------------------------------------------------------------------------------------------------------


FAULTS: dict[str, tuple[Fault, type[PixyProxyException]]] = {
    "500": (http.refuse(500, "InternalError"), StorageUnavailableError),
    "503": (http.refuse(503, "SlowDown"), StorageUnavailableError),
    "429": (http.refuse(429), StorageUnavailableError),
    "too slow": (http.refuse(400, "RequestTimeout"), StorageUnavailableError),
    "cut": (http.hang_up, StorageUnavailableError),
    "silent": (http.be_silent, StorageUnavailableError),
    "403": (http.refuse(403, "AccessDenied"), StorageMisconfiguredError),
    "401": (http.refuse(401), StorageMisconfiguredError),
    "expired": (http.refuse(400, "ExpiredToken"), StorageMisconfiguredError),
    "bucket": (http.refuse(404, "NoSuchBucket"), StorageMisconfiguredError),
    "moved": (http.refuse(301), StorageMisconfiguredError),
    "507": (http.refuse(507, "XMinioStorageFull"), StorageFullError),
    "quota": (http.refuse(403, "QuotaExceeded"), StorageFullError),
}


# Each fault in a read and in a write, and one of each kind in everything else: a pair costs all attempts of a client.
@pytest.mark.parametrize(
    ("use", "fault_name"),
    [
        *itertools.product(("open", "write"), FAULTS),
        *itertools.product((use for use in USES if use not in ("open", "write")), ("cut", "403", "507")),
    ],
)
def test_what_stays_wrong_is_told_and_loses_nothing(
    store: ObjectImageStore,
    impatient: ObjectImageStore,
    network: FaultyHttp,
    use: str,
    fault_name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.write(GUID, DATA)
    store.write_manifest(GUID, "manifest")
    method, function = USES[use]
    fault, expected = FAULTS[fault_name]
    network.will(fault, method)

    with pytest.raises(PixyProxyException) as refused:
        function(impatient if expected is StorageUnavailableError else store)

    assert type(refused.value) is expected
    assert not any(word in refused.value.message for word in ("http", "/", "secret", "Error"))
    assert any(record.levelno >= logging.WARNING for record in caplog.records)
    assert "the-secret-key" not in caplog.text
    network.recover()
    assert read_all(store) == DATA
    assert store.read_manifest(GUID) == "manifest"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "fault", [http.refuse(500), http.refuse(503, "SlowDown"), http.hang_up], ids=["500", "503", "cut"]
)
def test_what_goes_wrong_once_is_not_noticed(
    store: ObjectImageStore, network: FaultyHttp, use: str, fault: Fault
) -> None:
    store.write(GUID, DATA)
    method, function = USES[use]
    network.will(fault, method, times=1)

    function(store)


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_the_operators_to_mend(
    s3_server: RunningObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = fresh_store(s3_server, monkeypatch, {variable: "wrong-one"})

    for _, function in USES.values():
        with pytest.raises(StorageMisconfiguredError):
            function(store)

    assert "The object store refuses the request" in caplog.text
    assert "the-secret-key" not in caplog.text


def test_a_bucket_that_is_missing_is_not_a_damaged_image(
    s3_server: RunningObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_store(s3_server, monkeypatch)
    store = ObjectImageStore.at(BucketAddress.parse("s3://another-bucket"), timeout=5, allow_http=True)

    for _, function in USES.values():
        with pytest.raises(StorageMisconfiguredError):
            function(store)


def test_no_server_at_all(s3_server: RunningObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://{free_addresses(1)[0]}"
    store = fresh_store(s3_server, monkeypatch, {"AWS_ENDPOINT_URL": endpoint}, timeout=0.5)

    for _, function in USES.values():
        with pytest.raises(StorageUnavailableError):
            function(store)


def test_without_tls_nothing_is_sent_unless_allowed(
    s3_server: RunningObjectStore, network: FaultyHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_store(s3_server, monkeypatch, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{network.port}"})
    store = ObjectImageStore.at(BucketAddress.parse(s3_server.url), timeout=5, allow_http=False)

    for _, function in USES.values():
        with pytest.raises(StorageMisconfiguredError):
            function(store)

    assert network.asked == []


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_silent_while_reading_is_made_up_for(
    store: ObjectImageStore, url: str, network: FaultyHttp
) -> None:
    store.write(GUID, DATA)
    network.will(http.stall, "GET", KEY, times=1)

    assert read_all(store_at(url, timeout=2)) == DATA


@pytest.mark.parametrize("times", [1, 2])
def test_a_reader_whose_connection_is_lost_reads_on(store: ObjectImageStore, network: FaultyHttp, times: int) -> None:
    store.write(GUID, DATA)
    network.will(http.cut, "GET", KEY, times=times)

    assert read_all(store) == DATA


@pytest.mark.parametrize("held", [0, CHUNK])
def test_a_reader_that_waits_longer_than_a_request_may_last_reads_on(
    store: ObjectImageStore, url: str, network: FaultyHttp, held: int
) -> None:
    """Such as the last of several inputs of an edit, while the first ones are sent."""
    store.write(GUID, DATA)
    with store_at(url, timeout=0.2).open(GUID) as reader:
        data = reader.read(held)
        opened_at = time.monotonic()
        wait_until(lambda: time.monotonic() > opened_at + 2, PATIENCE, "the end of the request")
        while chunk := reader.read(CHUNK):
            data += chunk

    assert data == DATA
    assert network.count("GET", KEY) == 3  # the first one checked what was written


@pytest.mark.parametrize("fault", [http.refuse(503), http.refuse(403), http.be_silent])
def test_a_read_that_cannot_go_on_fails(
    store: ObjectImageStore, impatient: ObjectImageStore, network: FaultyHttp, fault: Fault
) -> None:
    store.write(GUID, DATA)
    network.will(http.cut, "GET", KEY, times=1)
    network.will(fault, "GET", KEY)

    with pytest.raises(StorageUnavailableError):
        read_all(impatient)


@pytest.mark.parametrize("change", [lambda store: store.write(GUID, DATA[::-1]), lambda store: store.delete(GUID)])
def test_bytes_of_two_versions_are_never_mixed(
    store: ObjectImageStore, network: FaultyHttp, change: Callable[[ObjectImageStore], None]
) -> None:
    store.write(GUID, DATA)
    network.will(http.cut, "GET", KEY, times=1)
    with store.open(GUID) as reader:
        first = reader.read(CHUNK)
        change(store)

        with pytest.raises(ContentDamagedError):
            reader.read(len(DATA))

    assert first == DATA[:CHUNK]


def test_reading_a_part_does_not_fetch_the_rest_to_get_there(store: ObjectImageStore, network: FaultyHttp) -> None:
    store.write(GUID, DATA)
    before = network.count("GET", KEY)

    with store.open(GUID) as reader:
        reader.seek(2 * 1024 * 1024)
        assert reader.read(100) == DATA[2 * 1024 * 1024 :][:100]
        assert reader.read(100) == DATA[2 * 1024 * 1024 :][100:200]

    assert network.count("GET", KEY) == before + 2


def test_a_whole_image_is_one_request(store: ObjectImageStore, network: FaultyHttp) -> None:
    store.write(GUID, DATA)
    before = len(network.asked)

    assert read_all(store) == DATA

    assert len(network.asked) == before + 1


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_a_write_whose_answer_is_lost_is_written_again(store: ObjectImageStore, network: FaultyHttp) -> None:
    network.will(http.lose_answer, "PUT", KEY, times=1)

    store.write(GUID, DATA)

    assert network.count("PUT", KEY) == 2
    assert read_all(store) == DATA


def test_a_write_that_meets_another_is_written_again(store: ObjectImageStore, network: FaultyHttp) -> None:
    network.will(http.refuse(409, "OperationAborted"), "PUT", KEY, times=2)

    store.write(GUID, DATA)

    assert read_all(store) == DATA


@pytest.mark.parametrize(
    ("fault", "method"),
    [(http.pretend, "PUT"), (http.flip, "GET"), (http.shorten, "GET"), (http.refuse(404, "NoSuchKey"), "GET")],
    ids=["not written", "other bytes", "fewer bytes", "not there"],
)
def test_a_store_that_does_not_keep_what_it_is_given_is_found_out(
    store: ObjectImageStore, network: FaultyHttp, fault: Fault, method: str
) -> None:
    network.will(fault, method, KEY)
    with pytest.raises(StorageUnavailableError) as refused:
        store.write(GUID, DATA)

    assert "does not keep" in refused.value.message
    network.recover()
    store.write(GUID, DATA)
    assert read_all(store) == DATA


def test_room_that_was_found_is_taken_to_be_there_for_a_while(store: ObjectImageStore, network: FaultyHttp) -> None:
    network.will(http.refuse(507), "PUT")
    with pytest.raises(StorageFullError):
        store.require_room(1)
    network.recover()
    before = network.count("PUT")

    for _ in range(10):
        store.require_room(64)

    assert network.count("PUT") == before + 1


def test_objects_lie_where_files_would(store: ObjectImageStore, s3_server: RunningObjectStore) -> None:
    store.write(GUID, DATA)
    store.write_manifest(GUID, "manifest")
    place = store.write_aside(GUID, b"answer")

    assert s3_server.folder is not None
    prefixes = [path.parents[2] for path in s3_server.folder.glob(f"*/{KEY}") if path.read_bytes() == DATA]
    assert any((prefix / ".notes" / GUID).exists() for prefix in prefixes)
    bucket, path = place.removeprefix("s3://").split("/", 1)
    assert bucket == s3_server.folder.name
    assert path.endswith(f"/.aside/{GUID}")
    assert (s3_server.folder / path).read_bytes() == b"answer"


# --- Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", BucketAddress("s3", "bucket", "")),
        ("s3://bucket/", BucketAddress("s3", "bucket", "")),
        ("gs://my_bucket.example/some/prefix", BucketAddress("gs", "my_bucket.example", "some/prefix")),
        ("az://container/prefix/", BucketAddress("az", "container", "prefix")),
    ],
)
def test_an_address_is_read(url: str, expected: BucketAddress) -> None:
    assert BucketAddress.parse(url) == expected
    assert BucketAddress.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "s3://", "s3:///prefix", "s3://bucket/a/../b", "s3://bucket//a", "s3://..", "http://host/", "file:///folder",
        "s3://bucket/a?x=1", "s3://bucket/#a", "s3://bucket:80/a", "s3://bucket/é", "s3://bucket/a b", "S3://bucket",
        "s3://key:secret@bucket/prefix", "s3://key@bucket",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        BucketAddress.parse(url)

    assert str(refused.value) in (BucketAddress.RULE, BucketAddress.NO_CREDENTIALS_RULE)
