"""The short form of the fuzzing; `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path
from random import Random

import grpc
import pytest

from tests.fuzz.answers import DOCUMENTED
from tests.fuzz.credentials import foreign_images, sign_ins, work_of_sign_ins
from tests.fuzz.frames import PlanBuilder, half_open_calls
from tests.fuzz.http2 import Http2Connection
from tests.fuzz.parts import PARTS, Part, run_part
from tests.fuzz.vitals import Watch
from tests.fuzz.world import open_world

_INPUTS = {"messages": 400, "requests": 1000, "frames": 450}
_SIGN_INS = 6


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_no_input_breaks_the_server_or_gets_an_answer_that_is_not_documented(part: Part, tmp_path: Path) -> None:
    report = run_part(part, _INPUTS[part.name], tmp_path)

    assert not report.failures, "\n".join(report.failures)
    assert report.statuses["OK"] > 0


def test_half_open_calls_of_one_connection_leave_room_for_others(tmp_path: Path) -> None:
    with open_world(tmp_path) as world, Http2Connection(world.server.address, timeout=10) as connection:
        plan = half_open_calls(PlanBuilder(Random(0), world), 2000)
        connection.send(plan.preface + plan.data)
        connection.listen(streams=1, timeout=5)

        assert connection.answers.resets
        Watch(world).check()


def test_the_table_of_errors_is_read() -> None:
    assert len(DOCUMENTED) >= 20
    assert DOCUMENTED["INVALID_FIELD"].code is grpc.StatusCode.INVALID_ARGUMENT
    assert DOCUMENTED["INVALID_FIELD"].details == {"BadRequest"}


def test_nothing_tells_who_has_a_name_or_what_others_keep_private(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        for pair in (sign_ins(world), *foreign_images(world)):
            pair.check_words()
        # Their times are compared in the long run; here, that both check a password once.
        for_known, for_unknown = work_of_sign_ins(world, _SIGN_INS)
        assert 1 / 1.5 < for_known / for_unknown < 1.5
