"""The threads of the gRPC server."""

from __future__ import annotations

import threading

import pytest

from pixyproxy.serving.server import CallThreads

_TIMEOUT = 30.0


def test_a_system_without_threads_fails_no_submission(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    done = threading.Semaphore(0)
    with CallThreads(4) as threads:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            threads.submit(done.release)
        assert not done.acquire(blocking=False)
        # It also runs what waits.
        threads.submit(done.release)
        assert all(done.acquire(timeout=_TIMEOUT) for _ in range(4))
    assert caplog.text.count("can't start new thread") == 3
