"""The lines of the audit log that changes of users and ends of generations add to its outbox."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    CallerGoneError,
    GenerationCancelledError,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
)
from pixyproxy.core.fields import GenerationState, UserClass
from pixyproxy.core.models import UNLIMITED, Caller, Cost, ImageCreation, ImageDetailCreate, QuotaLimits, UserCreate
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.audit_outbox import COMMAND, RECOVERY, AuditOutboxRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.service.users import UserService
from tests.unit.service.conftest import make_caller
from tests.unit.service.creation.parts import COST, FakeGenerator, Server
from tests.unit.service.sign_in.test_sign_in import make_service

_CALL = "host-1-7"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(SQLiteDatabase(tmp_path / "test.db", pool_size=2, timeout=10, is_audited=True)) as database:
        init.upgrade(database)
        yield database


@pytest.fixture
def users(database: Database) -> UserService:
    return make_service(database)


def pending(database: Database) -> list[tuple[dict[str, Any], PixyProxyException | None]]:
    """Return the lines and errors that are not written yet; the ids and times of lines differ each time."""
    with database.transaction() as context:
        outbox = AuditOutboxRepository(context)
        lines = outbox.lock(outbox.get_oldest(100))
    return [
        ({name: value for name, value in line.fields.items() if name not in ("id", "time")}, line.error)
        for line in lines
    ]


# --- Users -----------------------------------------------------------------------------------------------------------


def test_each_change_of_a_user_is_a_line(users: UserService, database: Database) -> None:
    password = SecretStr("correct horse")
    guid = users.create_user(UserCreate(username="ann", password=password, class_key=UserClass.ADMIN)).guid
    users.change_password("ann", "another password")
    limits = QuotaLimits(nano_usd_per_day=5, images_per_day=UNLIMITED)
    users.set_limits("ann", limits)
    users.remove_user("ann")

    everywhere = {"actor": COMMAND, "guid": guid, "username": "ann"}
    assert pending(database) == [
        ({"action": "user.added", **everywhere, "class_key": "admin"}, None),
        ({"action": "user.password_changed", **everywhere}, None),
        ({"action": "user.limits_changed", **everywhere, "limits": dict(limits)}, None),
        ({"action": "user.removed", **everywhere}, None),
    ]


def test_limits_are_those_of_their_user(users: UserService, database: Database) -> None:
    for name in ("ann", "bob"):
        make_caller(database, name)
    limits = QuotaLimits(nano_usd_per_day=5, images_per_day=6, generations_at_once=7)

    users.set_limits("ann", limits)

    assert (users.get_limits("ann"), users.get_limits("bob")) == (limits, QuotaLimits())


def test_limits_that_are_set_at_once_are_all_kept(users: UserService, database: Database) -> None:
    make_caller(database, "ann")
    limits = [QuotaLimits(nano_usd_per_day=5), QuotaLimits(images_per_day=6), QuotaLimits(generations_at_once=7)]

    with ThreadPoolExecutor(len(limits)) as threads:
        list(threads.map(lambda one: users.set_limits("ann", one), limits))

    assert users.get_limits("ann") == QuotaLimits(nano_usd_per_day=5, images_per_day=6, generations_at_once=7)
    assert users.set_limits("ann", QuotaLimits(images_per_day=None)) == users.get_limits("ann")
    assert users.get_limits("ann") == QuotaLimits(nano_usd_per_day=5, generations_at_once=7)


def test_limits_that_cannot_be_are_refused(users: UserService, database: Database) -> None:
    make_caller(database, "ann")

    with pytest.raises(InvalidFieldError, match="images_per_day"):
        users.set_limits("ann", QuotaLimits.model_construct(images_per_day=-2))

    assert (users.get_limits("ann"), pending(database)) == (QuotaLimits(), [])


# --- Generations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ann(database: Database) -> Caller:
    return make_caller(database, "ann")


@pytest.fixture
def generation(database: Database, ann: Caller) -> Generation:
    creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
    with database.transaction() as context:
        generations = GenerationRepository(context)
        recorded = generations.insert(creation, ann.user_id, "ab" * 32, RequestContext(call_id=_CALL))
        context.commit()
    return recorded


def guid_of(database: Database, generation: Generation) -> str:
    with database.reading() as context:
        return str(context.fetch_value("SELECT guid FROM generations WHERE id = :id", {"id": generation.id}))


def test_an_image_that_is_created_is_a_line_with_its_cost(
    database: Database, generation: Generation, ann: Caller
) -> None:
    cost = Cost(nano_usd=7, price_list="a list")
    with database.transaction() as context:
        for _ in range(2):  # The second time changes nothing.
            GenerationRepository(context).succeed(generation, cost)
        context.commit()

    assert pending(database) == [
        (
            {
                "action": "image.created",
                "actor": ann.username,
                "guid": generation.image_guid,
                "author": ann.username,
                "cost": dict(cost),
                "generation_guid": guid_of(database, generation),
                "call_id": _CALL,
            },
            None,
        )
    ]


def test_the_line_of_a_generated_image_has_its_cost(database: Database, ann: Caller, tmp_path: Path) -> None:
    creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
    with Server(database, LocalImageStore(tmp_path / "images"), FakeGenerator()).running() as server:
        image = server.creator.create(creation, ann, CallScope())

    ((line, _),) = pending(database)
    assert (line["action"], line["guid"], line["cost"]) == ("image.created", image.guid, dict(COST))


@pytest.mark.parametrize(
    ("state", "error", "if_expired", "action"),
    [
        (GenerationState.FAILED, PromptRefusedError("No castle."), False, "generation.failed"),
        (GenerationState.OUTCOME_UNKNOWN, OutcomeUnknownError("Who knows?"), True, "generation.outcome_unknown"),
    ],
)
def test_an_end_without_an_image_is_a_line_with_its_reason(
    database: Database,
    generation: Generation,
    ann: Caller,
    state: GenerationState,
    error: PixyProxyException,
    if_expired: bool,
    action: str,
) -> None:
    with database.transaction() as context:
        for _ in range(2):
            GenerationRepository(context).end(generation, state, error, if_expired=if_expired)
        context.commit()

    ((line, told),) = pending(database)
    assert line == {
        "action": action,
        "actor": RECOVERY if if_expired else ann.username,
        "guid": guid_of(database, generation),
        "author": ann.username,
        "call_id": _CALL,
    }
    assert (type(told), str(told)) == (type(error), str(error))


@pytest.mark.parametrize("canceller", [None, "root"])
def test_a_cancellation_is_a_line_with_who_cancelled(
    database: Database, generation: Generation, ann: Caller, canceller: str | None
) -> None:
    with database.transaction() as context:
        for _ in range(2):
            GenerationRepository(context).cancel(generation.id, CallerGoneError("Gone."), canceller)
        context.commit()

    ((line, told),) = pending(database)
    assert line == {
        "action": "generation.cancelled",
        "actor": canceller or ann.username,
        "guid": guid_of(database, generation),
        "author": ann.username,
        "call_id": _CALL,
    }
    assert isinstance(told, CallerGoneError)


def test_the_removal_of_a_user_cancels_what_is_queued(
    users: UserService, database: Database, generation: Generation, ann: Caller
) -> None:
    bob, creation = make_caller(database, "bob"), ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
    with database.transaction() as context:
        generations = GenerationRepository(context)
        others = [generations.insert(creation, author.user_id, "ab" * 32, RequestContext()) for author in (ann, bob)]
        generations.submit(others[0].id, "worker", timedelta(minutes=1), "m", 0)
        context.commit()

    assert users.remove_user("ann")

    (cancelled, told), (removed, _) = pending(database)
    assert (cancelled["action"], cancelled["actor"]) == ("generation.cancelled", COMMAND)
    assert cancelled["guid"] == guid_of(database, generation)
    assert isinstance(told, GenerationCancelledError)
    assert removed["action"] == "user.removed"
    with database.reading() as context:
        found = GenerationRepository(context).get_several([generation.id, *(other.id for other in others)])
    assert {one.id: one.state for one in found} == {
        generation.id: GenerationState.CANCELLED,
        others[0].id: GenerationState.SUBMITTED,
        others[1].id: GenerationState.QUEUED,
    }
