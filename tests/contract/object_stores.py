"""Stores for tests in a running object store."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import pytest

from pixyproxy.data.stores.bucket_address import BucketAddress
from pixyproxy.data.stores.object_image_store import ObjectImageStore
from tests.support.object_stores import RunningObjectStore
from tests.support.servers import NO_SETTINGS


def fresh_url(server: RunningObjectStore, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> str:
    """A prefix with nothing in it; ``variables`` take the place of the server's."""
    for name, value in {**server.env, **variables}.items():
        monkeypatch.setenv(name, value)
    return f"{server.url}/{uuid.uuid4().hex}"


def store_at(url: str, *, timeout: float) -> ObjectImageStore:
    """A store whose credentials are in the environment."""
    return ObjectImageStore.at(BucketAddress.parse(url), timeout=timeout, allow_http=True)


def fresh_store(
    server: RunningObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    variables: Mapping[str, str] = NO_SETTINGS,
    *,
    timeout: float = 10,
) -> ObjectImageStore:
    """A store at a prefix of its own."""
    return store_at(fresh_url(server, monkeypatch, variables), timeout=timeout)
