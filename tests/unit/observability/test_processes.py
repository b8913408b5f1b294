"""Which processes count as live."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pixyproxy.observability.processes import ProcessesCollector


def test_an_ended_process_whose_number_another_users_process_has_now_is_not_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gauge_livesum_1.db"
    file.touch()

    def refuse(process_id: int, _: int) -> None:
        raise PermissionError(process_id)

    monkeypatch.setattr(os, "kill", refuse)

    samples = [sample for metric in ProcessesCollector(tmp_path).collect() for sample in metric.samples]

    assert {sample.labels["pid"] for sample in samples} == {str(os.getpid())}
    assert not file.exists()
