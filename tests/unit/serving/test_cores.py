"""How many workers there are where nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixyproxy.serving import cores
from pixyproxy.serving.cores import advised_workers, choose_cores


@pytest.mark.parametrize(
    ("quota", "workers"),
    [
        ("max 100000\n", 8),
        ("800000 100000\n", 8),
        ("1600000 100000\n", 8),
        ("250000 100000\n", 3),
        ("100000 100000\n", 1),
        ("5000 100000\n", 1),
        ("nonsense", 8),
    ],
)
def test_a_containers_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, workers: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: list(range(8)))
    path = tmp_path / "cpu.max"
    assert advised_workers(path) == 8
    path.write_text(quota)
    assert advised_workers(path) == workers


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_each_worker_has_a_core_of_its_own(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: list(range(10, 18)))
    chosen = choose_cores(workers)
    assert len(set(chosen)) == workers
    assert set(chosen) <= set(range(10, 18))


def test_workers_share_cores_where_there_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: [4, 7])
    assert choose_cores(5) == [4, 7, 4, 7, 4]


def test_servers_do_not_crowd_on_the_first_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: list(range(8)))
    assert {core for _ in range(500) for core in choose_cores(2)} == set(range(8))


def test_one_where_a_port_or_a_core_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.sched_setaffinity")
    assert advised_workers(tmp_path / "cpu.max") == 1
