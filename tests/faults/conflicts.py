"""Many callers who change and delete the same images at once."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.field_mask_pb2 import FieldMask
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Answer, Bench, Site, Wish, answer_to
from tests.support.servers import RunningServer

_WORKERS = 16
_IMAGES = 4
_ALLOWED = {"OK", "ABORTED CONFLICT"}


def concurrent_changes(bench: Bench, database_url: str | None, *, changes: int, servers: int, seed: int) -> Outcome:
    """Change the tags and visibility of a few images from many threads, on several servers."""
    outcome = Outcome("changes of the same images at once", injected=changes)
    site = bench.site(database_url)
    told: Counter[str] = Counter()
    with site.server() as first, site.server() as second:
        targets = [first, second][:servers]
        wishes = [site.wish() for _ in range(_IMAGES)]
        for wish in wishes:
            outcome.expect(site.create(first, wish).is_ok, "made")

        def change(number: int) -> None:
            chance = random.Random(seed * 1_000_000 + number)
            answer = _change(site, chance.choice(targets), chance.choice(wishes), chance)
            told[answer.as_told] += 1
            outcome.recovered(answer.seconds)

        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(change, range(changes)))
        outcome.expect(told.keys() <= _ALLOWED, f"changes ended with {dict(told)}")
        _delete_while_changing(site, targets, outcome)
        audit(site, first, outcome, Expected())
    return outcome


def _change(site: Site, server: RunningServer, wish: Wish, chance: random.Random) -> Answer:
    assert wish.image is not None
    tags = tuple(f"tag {number}" for number in chance.sample(range(10), 4))
    request = pb.UpdateImageRequest(
        guid=wish.image.guid,
        tags=tags,
        visibility=chance.choice([pb.VISIBILITY_PRIVATE, pb.VISIBILITY_PUBLIC]),
        update_mask=FieldMask(paths=["tags", "visibility"]),
    )
    wish.tags.append(tags)  # Which one is last nobody can tell, but it must be one of them.
    return answer_to(lambda: server.images.UpdateImage(request, metadata=site.login.metadata, timeout=WAIT_TIMEOUT))


def _delete_while_changing(site: Site, servers: list[RunningServer], outcome: Outcome) -> None:
    wish = site.wish()
    outcome.expect(site.create(servers[0], wish).is_ok, "made")
    began = time.monotonic()

    def act(number: int) -> str:
        server = servers[number % len(servers)]
        if number == _WORKERS // 2:
            return site.delete(server, wish).as_told
        return _change(site, server, wish, random.Random(number)).as_told

    with ThreadPoolExecutor(_WORKERS) as pool:
        told = set(pool.map(act, range(_WORKERS)))
    outcome.expect(told <= {*_ALLOWED, "NOT_FOUND IMAGE_NOT_FOUND"}, f"deleted while it was changed: {told}")
    outcome.expect(time.monotonic() - began < WAIT_TIMEOUT, "deleting took too long")
