"""Work that is repeated in the background."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from pixyproxy.core.exceptions import DBConnectionError
from pixyproxy.core.periodic_task import PeriodicTask
from tests.support.waiting import wait_until

TIMEOUT = 10.0


class Work:
    """Counts its runs, and fails where an error is left."""

    def __init__(self, pause: float, *errors: Exception) -> None:
        self.pause = pause
        self.errors = list(errors)
        self.runs = 0

    def __call__(self) -> float:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.pause

    def wait_for_runs(self, count: int) -> None:
        wait_until(lambda: self.runs >= count, TIMEOUT, f"{count} runs")


def test_it_runs_at_once_and_again_after_the_pause() -> None:
    work = Work(0.001)
    with closing(PeriodicTask("work", work, retry_interval=60)) as task:
        task.start()
        work.wait_for_runs(5)


def test_it_is_woken_from_a_long_pause() -> None:
    work = Work(60)
    with closing(PeriodicTask("work", work, retry_interval=60)) as task:
        task.start()
        work.wait_for_runs(1)
        task.wake()
        work.wait_for_runs(2)


def test_it_goes_on_after_errors(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(60, DBConnectionError("away"), RuntimeError("?"))
    with closing(PeriodicTask("work", work, retry_interval=0.001)) as task:
        task.start()
        work.wait_for_runs(3)

    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [
        ("WARNING", False),
        ("ERROR", True),
    ]
    assert "The task work failed and will be retried: away" in caplog.text


def test_it_ends_its_thread() -> None:
    # Those of other tests may end meanwhile.
    before = threading.enumerate()
    task = PeriodicTask("work", Work(60), retry_interval=60)
    task.start()
    task.close()
    assert [thread for thread in threading.enumerate() if thread not in before] == []


def test_one_that_never_began_is_closed() -> None:
    PeriodicTask("work", Work(60), retry_interval=60).close()
