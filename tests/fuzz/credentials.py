"""What the answers tell of names and of others' images: nothing, by their words, their work or their time."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import new_guid
from tests.fuzz.answers import UnexpectedAnswerError
from tests.fuzz.world import World
from tests.support.rpc import Refusal, refusal
from tests.support.servers import Metadata, basic

# How far two medians may lie apart and still count as the same. What it must tell apart, such as a sign-in with
# or without the 77 ms of a password's check, differs many times over.
_ALIKE = (0.8, 1.25)
# A machine with other work may disturb one measurement, but hardly all of them.
_ROUNDS = 3
_HASHED_AT_LEAST_SECONDS = 0.01

Call = Callable[[], Refusal]


@dataclass(frozen=True)
class Pair:
    """Two calls whose refusals nobody should be able to tell apart."""

    name: str
    one: Call
    other: Call

    def check_words(self) -> None:
        """Check that code, message and details are the same, but for the ids that the caller sent.

        Raises:
            UnexpectedAnswerError: they are not.
        """
        one, other = (_words(call()) for call in (self.one, self.other))
        if one != other:
            raise UnexpectedAnswerError(f"{self.name}: {one} is not {other}")

    def check_times(self, samples: int) -> tuple[int, float]:
        """Check that both take the same time; return how many calls were made, and the ratio of the medians.

        Raises:
            UnexpectedAnswerError: they do not.
        """
        ratios = []
        for number in range(1, _ROUNDS + 1):
            ratios.append(_ratio_of_times(self, samples))
            if _ALIKE[0] <= ratios[-1] <= _ALIKE[1]:
                return 2 * samples * number, ratios[-1]
        raise UnexpectedAnswerError(f"{self.name}: medians differ by the factors {ratios}")


def sign_ins(world: World) -> Pair:
    """A sign-in with a name that there is, and with one that there is not."""
    # The server made this user itself, with a hash of full strength.
    known = world.server.admin.username
    return Pair(
        "wrong password and unknown user",
        _sign_in(world, basic(known, "a wrong password")),
        _sign_in(world, basic("nobody"[: len(known)], "a wrong password")),
    )


def foreign_images(world: World) -> list[Pair]:
    """Calls about another's private image, and about one that there is not."""
    ann, bob = world.people[:2]
    foreign = next(
        image.guid
        for image in world.images.values()
        if image.author == ann.name and image.visibility == pb.VISIBILITY_PRIVATE
    )
    missing = new_guid()
    mask = FieldMask(paths=["filename"])
    requests: list[Callable[[str], Any]] = [
        lambda guid: pb.GetImageRequest(guid=guid),
        lambda guid: pb.GetImageContentRequest(guid=guid),
        lambda guid: pb.GetImageContentRequest(guid=guid, read_offset=2**62),
        lambda guid: pb.GetImageContentRequest(guid=guid, if_none_match=world.images[foreign].sha256),
        lambda guid: pb.UpdateImageRequest(guid=guid, filename="mine.png", update_mask=mask),
        lambda guid: pb.DeleteImageRequest(guid=guid),
    ]
    return [
        Pair(
            f"{type(make('')).__name__} of a foreign and of a missing image",
            _call(world, make(foreign), bob.metadata),
            _call(world, make(missing), bob.metadata),
        )
        for make in requests
    ]


def work_of_sign_ins(world: World, attempts: int) -> tuple[float, float]:
    """Return the seconds of processor time that the server spends on each of the two sign-ins, alternately."""
    pair = sign_ins(world)
    spent = [0.0, 0.0]
    for _ in range(attempts):
        for at, call in enumerate((pair.one, pair.other)):
            before = _processor_seconds(world)
            call()
            spent[at] += _processor_seconds(world) - before
    if min(spent) < attempts * _HASHED_AT_LEAST_SECONDS:
        raise UnexpectedAnswerError(f"no password was checked: {spent} s")
    return spent[0], spent[1]


def check_credentials(
    world: World, statuses: Counter[str], *, sign_in_samples: int, image_samples: int
) -> tuple[int, list[str]]:
    """Check words and times of all pairs; return how many calls were made, and a line for each pair."""
    lines, calls = [], 0
    for pair in (sign_ins(world), *foreign_images(world)):
        pair.check_words()
        samples = sign_in_samples if pair.name.startswith("wrong") else image_samples
        made, ratio = pair.check_times(samples)
        statuses[pair.one().reason] += made
        calls += made
        lines.append(f"{pair.name}: ratio of the medians {ratio:.3f}")
    return calls, lines


def _sign_in(world: World, metadata: Metadata) -> Call:
    return _call(world, pb.GetImageRequest(guid=world.pick_guid(0)), metadata)


def _call(world: World, request: Any, metadata: Metadata) -> Call:
    method = getattr(world.server.images, type(request).__name__.removesuffix("Request"))
    return lambda: _refused(method, request, metadata)


def _refused(method: Any, request: Any, metadata: Metadata) -> Refusal:
    refused = refusal(method, request, metadata)
    if refused.resource is not None and refused.resource.resource_name != request.guid:
        raise UnexpectedAnswerError(f"another ResourceInfo: {refused.resource}")
    return refused


def _words(refused: Refusal) -> tuple[Any, ...]:
    code, message, details = refused.as_seen
    guid = refused.resource.resource_name.encode() if refused.resource else b"-"
    return code, message, [(url, value.replace(guid, b"")) for url, value in details]


def _ratio_of_times(pair: Pair, samples: int) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(samples):
        # Alternately, each of them first as often as second.
        for at in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            (pair.one, pair.other)[at]()
            times[at].append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


def _processor_seconds(world: World) -> float:
    """User and system time of the server's process and all its threads."""
    fields = Path(f"/proc/{world.server.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
