"""What the queue of renditions must do on every database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import ConstraintViolationError, ContentDamagedError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import (
    PLACEHOLDER,
    Rendition,
    RenditionClaim,
    RenditionRepository,
    RenditionState,
)
from pixyproxy.data.transactions import in_transaction
from tests.contract.records import NOON, add_caller, add_image, get_image

LEASE = timedelta(minutes=1)
OVER = timedelta(seconds=-1)
Result = TypeVar("Result")


def do(database: Database, work: Callable[[RenditionRepository], Result]) -> Result:
    return in_transaction(database, lambda context: work(RenditionRepository(context)))


def add(database: Database, *edges: int, guid: str = "", state: RenditionState = RenditionState.REQUESTED) -> str:
    guid = guid or new_guid()
    for edge in edges:
        if state is RenditionState.PLANNED:
            do(database, lambda renditions, edge=edge: renditions.plan([guid], edge))  # type: ignore[misc]
        else:
            do(database, lambda renditions, edge=edge: renditions.request([guid], edge))  # type: ignore[misc]
    return guid


def claim(database: Database, owner: str = "me", lease: timedelta = LEASE) -> RenditionClaim | None:
    image_guid = do(database, lambda renditions: renditions.next_due())
    return None if image_guid is None else do(database, lambda r: r.claim(image_guid, owner, lease))


def complete(database: Database, guid: str, edge: int, owner: str = "me") -> bool:
    return do(
        database,
        lambda renditions: renditions.complete(
            guid, edge, owner, sha256="ab" * 32, size_bytes=1234, width=edge, height=7
        ),
    )


def get(database: Database, guid: str, edge: int) -> Rendition:
    return do(database, lambda renditions: renditions.get([guid], edge))[guid]


def test_it_is_requested_claimed_and_made(database: Database) -> None:
    guid = add(database, 256)
    requested = get(database, guid, 256)
    assert (requested.state, requested.is_final, requested.is_leased) == (RenditionState.REQUESTED, False, False)

    assert claim(database) == RenditionClaim(guid, (256,), is_requested=True, attempts=1)
    assert get(database, guid, 256).is_leased
    assert claim(database, "another") is None

    assert complete(database, guid, 256)
    made = get(database, guid, 256)
    assert (made.state, made.is_final, made.is_leased, made.id) == (RenditionState.MADE, True, False, requested.id)
    assert (made.sha256, made.size_bytes, made.width, made.height) == ("ab" * 32, 1234, 256, 7)
    assert claim(database) is None


def test_several_at_a_time(database: Database) -> None:
    guids = [new_guid() for _ in range(3)]
    do(database, lambda renditions: renditions.request(guids[:2], 256))
    add(database, 512, guid=guids[0])

    found = do(database, lambda renditions: renditions.get(guids, 256))
    assert set(found) == set(guids[:2])
    ids = {rendition.id for rendition in found.values()}
    by_id = do(database, lambda renditions: renditions.get_several([*ids, 0]))
    assert by_id == {rendition.id: rendition for rendition in found.values()}
    assert do(database, lambda renditions: renditions.get_several([])) == {}
    assert {rendition.edge for rendition in do(database, lambda r: r.get_of_image(guids[0]))} == {256, 512}
    with pytest.raises(ConstraintViolationError):
        do(database, lambda renditions: renditions.request(guids, 256))
    assert set(do(database, lambda renditions: renditions.get(guids, 256))) == set(guids[:2])


def test_which_are_still_to_be_made(database: Database) -> None:
    requested, made, failed = (add(database, 256) for _ in range(3))
    planned = add(database, 256, state=RenditionState.PLANNED)
    ids = [get(database, guid, 256).id for guid in (requested, made, failed, planned)]
    with database.transaction() as context:
        for rendition_id, state in ((ids[1], RenditionState.MADE), (ids[2], RenditionState.FAILED)):
            parameters = {"id": rendition_id, "state": state.value}
            context.execute("UPDATE renditions SET state = :state WHERE id = :id", parameters)
        context.commit()

    assert do(database, lambda renditions: renditions.get_pending([*ids, 0])) == {ids[0], ids[3]}
    assert do(database, lambda renditions: renditions.get_pending([])) == set()


def test_all_renditions_of_an_image_are_claimed_together_and_the_oldest_image_first(database: Database) -> None:
    first = add(database, 256, 1024)
    second = add(database, 256)
    add(database, 512, guid=first, state=RenditionState.PLANNED)

    claimed = claim(database)
    assert claimed is not None
    assert (claimed.image_guid, sorted(claimed.edges)) == (first, [256, 512, 1024])
    claimed = claim(database)
    assert claimed is not None
    assert claimed.image_guid == second


def test_planned_ones_come_last_unless_somebody_waits(database: Database) -> None:
    planned, preferred = (add(database, 256, state=RenditionState.PLANNED) for _ in range(2))
    requested = add(database, 256)
    preferred_id = get(database, preferred, 256).id
    do(database, lambda renditions: renditions.prefer([preferred_id]))
    do(database, lambda renditions: renditions.prefer([]))

    claims = [claim(database) for _ in range(3)]
    assert [(each.image_guid, each.is_requested) for each in claims if each] == [
        (preferred, True),
        (requested, True),
        (planned, False),
    ]


def test_what_a_living_worker_gives_back_is_claimed_again_as_if_it_had_not_been(database: Database) -> None:
    guid = add(database, 256, 512)
    assert claim(database, "me") is not None
    assert complete(database, guid, 512)
    do(database, lambda renditions: renditions.give_back("another", was_attempt=False))
    assert claim(database, "me") is None
    do(database, lambda renditions: renditions.give_back("me", was_attempt=False))
    assert claim(database, "another") == RenditionClaim(guid, (256,), is_requested=True, attempts=1)


def test_an_expired_lease_is_claimed_again_and_the_first_worker_is_too_late_only_for_deleted_ones(
    database: Database,
) -> None:
    guid = add(database, 256)
    claim(database, "slow", OVER)
    assert not get(database, guid, 256).is_leased
    claimed = claim(database, "fast")
    assert claimed == RenditionClaim(guid, (256,), is_requested=True, attempts=2)
    assert complete(database, guid, 256, "slow")  # It is known; the other worker makes it.
    assert get(database, guid, 256).state is RenditionState.REQUESTED
    assert complete(database, guid, 256, "fast")
    rendition_id = get(database, guid, 256).id
    do(database, lambda renditions: renditions.delete([rendition_id]))
    do(database, lambda renditions: renditions.delete([]))
    assert not complete(database, guid, 256, "slow")


def test_the_leases_of_a_worker_that_has_ended(database: Database) -> None:
    mine, others = add(database, 256), add(database, 256)
    claim(database, "me")
    claim(database, "another")
    do(database, lambda renditions: renditions.give_back("me", was_attempt=True))
    assert not get(database, mine, 256).is_leased
    assert get(database, others, 256).is_leased
    claimed = claim(database, "third")
    assert claimed is not None
    assert claimed.image_guid == mine


def test_a_failure_is_kept_until_it_is_requested_again(database: Database) -> None:
    guid = add(database, 256, 512)
    claimed_first = RenditionClaim(guid, (256, 512), is_requested=True, attempts=1)
    assert claim(database) == claimed_first
    complete(database, guid, 512)
    again_at = datetime.now(UTC) + LEASE
    do(database, lambda r: r.fail(claimed_first, "another", ContentDamagedError("not mine"), again_at))
    assert not get(database, guid, 256).is_final
    do(database, lambda r: r.fail(claimed_first, "me", ContentDamagedError("It is damaged: é."), again_at))
    failed = get(database, guid, 256)
    assert (failed.state, failed.due_at) == (RenditionState.FAILED, again_at)
    assert failed.error is not None
    error = from_record(failed.error)
    assert (type(error), error.message) == (ContentDamagedError, "It is damaged: é.")
    assert get(database, guid, 512).state is RenditionState.MADE
    assert claim(database) is None

    do(database, lambda renditions: renditions.request_again(failed))
    do(database, lambda renditions: renditions.request_again(failed))
    claimed = claim(database)
    assert claimed == RenditionClaim(guid, (256,), is_requested=True, attempts=1)
    assert complete(database, guid, 256)
    assert get(database, guid, 256).error is None


def test_damaged_bytes_are_made_again_once_for_all_who_found_them(database: Database) -> None:
    guid = add(database, 256)
    claim(database)
    complete(database, guid, 256)
    damaged = get(database, guid, 256)
    do(database, lambda renditions: renditions.request_again(damaged))
    claim(database)
    do(database, lambda renditions: renditions.request_again(damaged))
    assert get(database, guid, 256).is_leased
    complete(database, guid, 256)
    do(database, lambda renditions: renditions.request_again(damaged))
    assert get(database, guid, 256).state is RenditionState.MADE


def test_those_of_images_that_do_not_exist(database: Database) -> None:
    image = add_image(database, add_caller(database))
    add(database, 256, 512, guid=image.guid)
    orphans = {add(database, 256), add(database, 256)}

    found, after = do(database, lambda renditions: renditions.get_orphans(3, after=0))
    more, end = do(database, lambda renditions: renditions.get_orphans(3, after=after))
    assert (found | more, len(found)) == (orphans, 1)
    assert do(database, lambda renditions: renditions.get_orphans(3, after=end)) == (set(), 0)

    for orphan in orphans:
        claimed = claim(database)
        while claimed is not None and claimed.image_guid != orphan:
            claimed = claim(database)
        if claimed is not None:
            do(database, lambda renditions, claimed=claimed: renditions.drop(claimed, "another"))  # type: ignore[misc]
            assert do(database, lambda renditions, orphan=orphan: renditions.get_of_image(orphan))  # type: ignore[misc]
            do(database, lambda renditions, claimed=claimed: renditions.drop(claimed, "me"))  # type: ignore[misc]
            assert not do(database, lambda renditions, orphan=orphan: renditions.get_of_image(orphan))  # type: ignore[misc]


def test_each_is_claimed_once_by_workers_that_race(database: Database) -> None:
    guids = {add(database, 256) for _ in range(12)}

    def claim_all(number: int) -> list[str]:
        claimed: list[str] = []
        idle = 0
        while idle < 3:
            found = claim(database, f"worker {number}")
            idle = 0 if found else idle + 1
            claimed += [found.image_guid] if found else []
        return claimed

    with ThreadPoolExecutor(4) as pool:
        claimed = [guid for guids in pool.map(claim_all, range(4)) for guid in guids]
    assert sorted(claimed) == sorted(guids)


def test_images_without_a_placeholder(database: Database) -> None:
    ann = add_caller(database)
    images = [add_image(database, ann, created_at=NOON + timedelta(minutes=number)) for number in range(5)]
    with_one, planned, new = images[1], images[2], images[4]
    hashed = bytes(range(0, 250, 10))
    in_transaction(database, lambda context: ImageRepository(context).set_placeholder(with_one.guid, hashed))
    add(database, PLACEHOLDER, guid=planned.guid, state=RenditionState.PLANNED)
    add(database, 256, guid=images[3].guid)

    def look(after: int, limit: int = 10) -> tuple[list[str], int]:
        return do(database, lambda r: r.get_without_placeholder(limit, after=after, before=new.created_at))

    assert look(0, limit=3) == ([images[0].guid], planned.id)
    assert look(planned.id) == ([images[3].guid], images[3].id)
    assert look(images[3].id) == ([], images[3].id)
    assert [do(database, lambda r, limit=limit: r.count_planned(limit)) for limit in (1, 5)] == [1, 1]  # type: ignore[misc]
    assert get_image(database, with_one.guid, ann) == with_one.model_copy(update={"placeholder": hashed})
    assert type(get_image(database, with_one.guid, ann).placeholder) is bytes
    assert get_image(database, new.guid, ann).placeholder is None


def test_what_is_planned_takes_the_place_of_what_was_known(database: Database) -> None:
    guid = add(database, 256)
    claim(database)
    complete(database, guid, 256)
    add(database, 256, guid=guid, state=RenditionState.PLANNED)
    planned = get(database, guid, 256)
    assert (planned.state, planned.sha256) == (RenditionState.PLANNED, None)
    assert claim(database) == RenditionClaim(guid, (256,), is_requested=False, attempts=1)
