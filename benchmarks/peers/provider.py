"""The provider's stand-in, with one more control word: ``[[fault:late=SECONDS:bytes=N]]`` answers late, with N bytes.

The answer of each size is made once, and whoever else wants to run goes first, so that the provider, which stands
elsewhere in earnest, takes next to nothing of the cores that are measured.
"""

from __future__ import annotations

import functools
import json
import os
import time

from tests.support import openai_stand_in as stand_in


@functools.cache
def _answer(size: int) -> bytes:
    submission = stand_in.Submission({"model": "bench", "prompt": "a padded picture", "size": "64x64"}, {}, 1)
    picture = stand_in.pad_png(stand_in.make_picture(submission), size)
    return json.dumps(stand_in.make_answer(submission, picture)).encode()


def _answer_late(handler: stand_in.Handler, _: stand_in.Submission, fault: stand_in.Fault) -> None:
    body = _answer(int(fault.options["bytes"]))
    time.sleep(float(fault.value))
    handler.send_body(200, body)


if __name__ == "__main__":
    os.nice(19)
    stand_in._FAULTS["late"] = _answer_late
    stand_in.main()
