"""The provider's stand-in, with one more control word: ``[[fault:late=SECONDS:bytes=N]]`` answers late, with N bytes.

A picture of each size is made once, so that the provider takes next to nothing of the cores that are measured.
"""

from __future__ import annotations

import functools
import time

from tests.support import openai_stand_in as stand_in


@functools.cache
def _picture(size: int) -> bytes:
    body = {"model": "bench", "prompt": "a padded picture", "size": "64x64"}
    return stand_in.pad_png(stand_in.make_picture(stand_in.Submission(body, {}, 1)), size)


def _answer_late(handler: stand_in.Handler, submission: stand_in.Submission, fault: stand_in.Fault) -> None:
    time.sleep(float(fault.value))
    stand_in._send_picture_bytes(handler, submission, _picture(int(fault.options["bytes"])))


if __name__ == "__main__":
    stand_in._FAULTS["late"] = _answer_late
    stand_in.main()
