"""A pytest plugin with the fixtures `s3_server` and `azure_server`: each worker of a run has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.object_stores import RunningObjectStore, running_azure, running_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[RunningObjectStore]:
    with running_azure() as server:
        yield server
