"""The number of RPC workers, and their cores."""

from __future__ import annotations

from pathlib import Path

import pytest

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
def test_a_containers_share_of_the_cores(tmp_path: Path, quota: str, workers: int) -> None:
    path = tmp_path / "cpu.max"
    assert advised_workers(range(8), path) == 8
    path.write_text(quota)
    assert advised_workers(range(8), path) == workers


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_each_worker_has_a_core_of_its_own(workers: int) -> None:
    chosen = choose_cores(workers, range(10, 18))
    assert len(set(chosen)) == workers
    assert set(chosen) <= set(range(10, 18))


def test_workers_share_cores_if_there_are_too_few() -> None:
    assert choose_cores(5, [4, 7]) == [4, 7, 4, 7, 4]


def test_servers_do_not_all_use_the_first_cores() -> None:
    assert {core for _ in range(500) for core in choose_cores(2, range(8))} == set(range(8))


def test_one_worker_if_a_process_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.sched_setaffinity")
    assert advised_workers(range(8), tmp_path / "cpu.max") == 1
