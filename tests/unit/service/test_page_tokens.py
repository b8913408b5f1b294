"""Page tokens."""

from __future__ import annotations

import string
from datetime import UTC, datetime

import pytest

from pixyproxy.core.exceptions import ConflictError, InvalidFieldError
from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import Caller, GenerationFilter, ImageFilter, PagePosition
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.service.page_tokens import PageTokens, new_page_token_key, shared_key

POSITION = PagePosition(datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC), 123_456_789)
FILTER = ImageFilter(prompt="castle", tags=("a", "b"))
ALICE = Caller(user_id=1, guid="123e4567-e89b-42d3-a456-426614174000", username="alice", class_key=UserClass.USER)
BOB = ALICE.model_copy(update={"guid": "123e4567-e89b-42d3-a456-426614174001", "username": "bob"})


@pytest.fixture
def tokens() -> PageTokens:
    return PageTokens(new_page_token_key())


@pytest.mark.parametrize("caller", [None, ALICE])
@pytest.mark.parametrize("position", [POSITION, PagePosition(datetime(1, 1, 1, tzinfo=UTC), 0)])
def test_a_token_gives_back_its_position(tokens: PageTokens, caller: Caller | None, position: PagePosition) -> None:
    assert tokens.open(tokens.seal(position, FILTER, caller), FILTER, caller) == position


def test_servers_with_one_key_take_each_others_tokens() -> None:
    key = new_page_token_key()

    assert PageTokens(key).open(PageTokens(key).seal(POSITION, FILTER, None), FILTER, None) == POSITION


def test_servers_on_one_database_have_one_key(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if two of them start at the same time."""
    key = shared_key(database)
    assert PageTokens(key)
    assert shared_key(database) == key

    get, looks = ServerValueRepository.get, [""]
    monkeypatch.setattr(
        ServerValueRepository, "get", lambda values, name: None if looks and not looks.pop() else get(values, name)
    )
    assert shared_key(database) == key


def test_creating_the_key_is_repeated_after_a_deadlock(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    insert, failures = ServerValueRepository.insert, [ConflictError("a deadlock")]

    def insert_later(values: ServerValueRepository, name: str, value: str) -> None:
        if failures:
            raise failures.pop()
        insert(values, name, value)

    monkeypatch.setattr(ServerValueRepository, "insert", insert_later)
    key = shared_key(database)
    assert not failures
    assert shared_key(database) == key


@pytest.mark.parametrize(
    ("token", "wanted", "caller"),
    [
        ("ma5vAmQQKwl9rpuDI4rdvvDf7No7EvspzS6-GoabINPfvfzRcgjah2_m-dU", ImageFilter(), None),
        ("I_iS6mJH_E0niATQ3P4oqPiyMvRuQSji6VTNxL1jqbMcydFJp66L1oUQ1dg", FILTER, ALICE),
        ("jEJPpF9rbW50NFEbsdk2F58V9SnOS6FhA27AXL4nHtCC76lCweM5b-knuR8", GenerationFilter(), ALICE),
    ],
)
def test_tokens_of_earlier_releases_stay_valid(
    token: str, wanted: ImageFilter | GenerationFilter, caller: Caller | None
) -> None:
    assert PageTokens("5c" * 32).open(token, wanted, caller) == POSITION


def test_tokens_say_nothing_and_repeat_nothing(tokens: PageTokens) -> None:
    first, second = (tokens.seal(POSITION, FILTER, None) for _ in range(2))

    assert first != second
    assert first.isascii()


@pytest.mark.parametrize(
    ("image_filter", "caller"),
    [
        (FILTER, None),
        (FILTER, BOB),
        (ImageFilter(), ALICE),
        (ImageFilter(prompt="castle", tags=("b", "a")), ALICE),
        (ImageFilter(prompt="castl", tags=("a", "b")), ALICE),
    ],
)
def test_a_token_is_good_for_one_question_of_one_caller(
    tokens: PageTokens, image_filter: ImageFilter, caller: Caller | None
) -> None:
    token = tokens.seal(POSITION, FILTER, ALICE)

    with pytest.raises(InvalidFieldError, match="page_token"):
        tokens.open(token, image_filter, caller)


def test_every_changed_character_is_noticed(tokens: PageTokens) -> None:
    token = tokens.seal(POSITION, FILTER, ALICE)

    for place in range(len(token)):
        # Of the last character, some bits belong to no byte; and + and / are the same bytes as - and _.
        for other in {*(string.ascii_letters + string.digits + "-_+/")} - {token[place]}:
            with pytest.raises(InvalidFieldError):
                tokens.open(token[:place] + other + token[place + 1 :], FILTER, ALICE)


@pytest.mark.parametrize("token", ["x", "====", "not base64!", "é", "A" * 59, "A" * 100_000, "\0"])
def test_what_is_no_token_is_refused(tokens: PageTokens, token: str) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        tokens.open(token, FILTER, None)
    assert [violation.field for violation in refused.value.violations] == ["page_token"]


@pytest.mark.parametrize("strange", ["\n", " ", "!", "=", "é"])
def test_a_token_with_strange_characters_in_it_is_refused(tokens: PageTokens, strange: str) -> None:
    token = tokens.seal(POSITION, FILTER, None)

    for place in (0, 20, len(token)):
        with pytest.raises(InvalidFieldError):
            tokens.open(token[:place] + strange + token[place:], FILTER, None)


def test_another_databases_token_is_refused(tokens: PageTokens) -> None:
    token = PageTokens(new_page_token_key()).seal(POSITION, FILTER, None)

    with pytest.raises(InvalidFieldError):
        tokens.open(token, FILTER, None)
