"""What storing, reading, changing and removing users must do on every database."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from pydantic import SecretStr

from pixyproxy.core.exceptions import ConstraintViolationError, RecordNotFoundError
from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import ImageCreation, ImageDetailCreate, User, UserCreate
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from pixyproxy.data.repositories.users import UserRepository
from tests.contract.records import PASSWORD_HASH, add_caller, add_image, add_user
from tests.contract.texts import COMPOSED, DECOMPOSED, LINES

T = TypeVar("T")

USERNAMES = {name: line.replace(":", ";")[:64].strip() for name, line in LINES.items()}


def committed(database: Database, work: Callable[[UserRepository], T]) -> T:
    with database.transaction() as context:
        result = work(UserRepository(context))
        context.commit()
    return result


def read(database: Database, work: Callable[[UserRepository], T]) -> T:
    with database.reading() as context:
        return work(UserRepository(context))


def get_user(database: Database, username: str) -> User:
    return read(database, lambda users: users.get(username))


def test_a_user_comes_back_as_it_was_inserted(database: Database) -> None:
    before = datetime.now(UTC)
    user = add_user(database, "ann", UserClass.ADMIN)

    assert (user.username, user.class_key) == ("ann", UserClass.ADMIN)
    assert user.password.get_secret_value() == PASSWORD_HASH
    assert before <= user.created_at == user.updated_at <= datetime.now(UTC)
    stored = get_user(database, "ann")
    assert stored == user
    # What was read was not checked again, so that wrong types would go unnoticed.
    assert User.model_validate(dict(stored), strict=True) == user


def test_guids_and_ids_are_different(database: Database) -> None:
    ann, bob = add_user(database, "ann"), add_user(database, "bob")

    assert ann.guid != bob.guid
    assert ann.id < bob.id


@pytest.mark.parametrize("username", USERNAMES.values(), ids=USERNAMES)
def test_any_username_comes_back_as_it_was_given(database: Database, username: str) -> None:
    user = add_user(database, username)

    assert get_user(database, username).username.encode() == username.encode()
    assert [other.username for other in read(database, UserRepository.get_all)] == [user.username]


# U+1D160 is three characters of four bytes each in the composed form that keys have.
@pytest.mark.parametrize("character", ["a", "🦊", "𠮷", "\U0001d160", "'", "\\"])
def test_the_longest_usernames_come_back(database: Database, character: str) -> None:
    users = [add_user(database, character * 63 + last) for last in "ab"]

    assert [get_user(database, user.username) for user in users] == users


@pytest.mark.parametrize(
    "usernames",
    [
        ("🍎", "🍌", "🦊"),
        ("e", "é", "E", "É", "ê"),
        ("ss", "ß", "SS", "ẞ"),
        ("i", "I", "ı", "İ"),
        ("か", "カ", "ｶ", "が"),
        ("☺", "☺\ufe0f", "☺\ufe0e"),
        ("👍", "👍🏻", "👍🏿"),
        ("a", "a\u200b", "a\ufeff", "a\u00ad", "a b", "a  b"),
        ("0", "00", "0.0", "0e0", "-0"),
        ("a'", "a''", "a\\'", "a\\"),
        ("null", "NULL", "true"),
    ],
)
def test_usernames_that_look_alike_are_different_users(database: Database, usernames: tuple[str, ...]) -> None:
    users = [add_user(database, username) for username in usernames]

    assert [get_user(database, username) for username in usernames] == users


def test_spaces_at_the_end_of_a_name_are_part_of_it(database: Database) -> None:
    # No user can have such a name, and none must be found by it.
    add_user(database, "ann")

    for username in ("ann ", " ann", "ann\u00a0"):
        with pytest.raises(RecordNotFoundError):
            get_user(database, username)


def test_a_name_is_taken_once(database: Database) -> None:
    user = add_user(database, "ann")

    with pytest.raises(ConstraintViolationError):
        add_user(database, "ann", UserClass.ADMIN)

    assert read(database, UserRepository.get_all) == [user]


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_name_composed_and_decomposed_is_one_name(database: Database, first: str, second: str) -> None:
    user = add_user(database, first)

    assert get_user(database, second) == user
    assert user.username == first
    with pytest.raises(ConstraintViolationError):
        add_user(database, second)


@pytest.mark.parametrize("username", ["nobody", "", "ANN", "a%", "ann\\", "' OR '1'='1"])
def test_an_unknown_user_is_not_found(database: Database, username: str) -> None:
    add_user(database, "ann")

    with pytest.raises(RecordNotFoundError):
        get_user(database, username)


def test_all_users_are_listed_by_name(database: Database) -> None:
    usernames = ["Zoë", "ann", "Ann", "änn", "雪", "🍎", "\ue000", "ann2", DECOMPOSED]
    users = {username: add_user(database, username) for username in usernames}

    # By code points of the composed form, which is the order of its bytes.
    expected = [users[name] for name in sorted(usernames, key=lambda name: unicodedata.normalize("NFC", name))]

    assert read(database, UserRepository.get_all) == expected


def test_has_any(database: Database) -> None:
    assert read(database, UserRepository.has_any) is False

    author = add_caller(database, "ann")
    assert read(database, UserRepository.has_any) is True

    add_image(database, author)
    committed(database, lambda users: users.remove(author.user_id))
    assert read(database, UserRepository.has_any) is True  # There was one.


def test_a_new_password_is_stored(database: Database) -> None:
    ann, bob = add_user(database, "ann"), add_user(database, "bob")
    password = "$argon2id$v=19$m=65536,t=3,p=4$" + "x" * 200

    committed(database, lambda users: users.update_password(ann.id, SecretStr(password)))

    changed = get_user(database, "ann")
    assert changed.password.get_secret_value() == password
    assert changed == ann.model_copy(update={"password": changed.password, "updated_at": changed.updated_at})
    assert ann.updated_at < changed.updated_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert get_user(database, "bob") == bob


def test_a_user_without_images_is_removed_and_the_name_is_free(database: Database) -> None:
    ann, bob = add_user(database, "ann"), add_user(database, "bob")

    assert committed(database, lambda users: users.remove(ann.id)) is False

    with pytest.raises(RecordNotFoundError):
        get_user(database, "ann")
    assert read(database, UserRepository.get_all) == [bob]
    again = add_user(database, "ann")
    assert again.id != ann.id
    assert get_user(database, "ann") == again


@pytest.mark.parametrize("has", ["image", "generation"])
def test_a_user_with_work_is_removed_and_the_name_stays_taken(database: Database, has: str) -> None:
    author = add_caller(database, "ann")
    bob = add_user(database, "bob")
    if has == "image":
        add_image(database, author)
    else:
        with database.transaction() as context:
            creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
            GenerationRepository(context).insert(creation, author.user_id, "0" * 64, RequestContext())
            context.commit()

    assert committed(database, lambda users: users.remove(author.user_id)) is True

    with pytest.raises(RecordNotFoundError):
        get_user(database, "ann")
    assert read(database, UserRepository.get_all) == [bob]
    with pytest.raises(ConstraintViolationError):
        add_user(database, "ann")
    with database.reading() as context:
        row = context.fetch_one("SELECT password FROM users WHERE id = :id", {"id": author.user_id})
    assert row == {"password": ""}  # No hash is kept of somebody who has left.


def test_removing_nobody_frees_nothing(database: Database) -> None:
    ann = add_user(database, "ann")

    assert committed(database, lambda users: users.remove(ann.id + 1)) is False
    assert read(database, UserRepository.get_all) == [ann]


def test_the_revision_changes_with_every_change_and_only_then(database: Database) -> None:
    revisions = [read(database, UserRepository.revision)]
    assert revisions == [""]

    ann = add_user(database, "ann")
    revisions.append(read(database, UserRepository.revision))
    add_user(database, "bob")
    revisions.append(read(database, UserRepository.revision))
    committed(database, lambda users: users.update_password(ann.id, SecretStr("another hash")))
    revisions.append(read(database, UserRepository.revision))
    committed(database, lambda users: users.remove(ann.id))
    revisions.append(read(database, UserRepository.revision))
    assert len(set(revisions)) == 5

    read(database, UserRepository.get_all)
    with pytest.raises(ConstraintViolationError):
        add_user(database, "bob")
    assert read(database, UserRepository.revision) == revisions[-1]


def test_what_is_not_committed_has_not_happened(database: Database) -> None:
    ann = add_user(database, "ann")
    revision = read(database, UserRepository.revision)

    with database.transaction() as context:
        users = UserRepository(context)
        users.insert(UserCreate(username="bob", password=SecretStr(PASSWORD_HASH)))
        users.update_password(ann.id, SecretStr("another hash"))
        users.remove(ann.id)
        assert [user.username for user in users.get_all()] == ["bob"]

    assert read(database, UserRepository.get_all) == [ann]
    assert read(database, UserRepository.revision) == revision


def test_when_each_user_last_changed(database: Database) -> None:
    ann, bob, cat = (add_caller(database, name) for name in ("ann", "bob", "cat"))
    with database.transaction() as context:
        users = UserRepository(context)
        before = users.changed_at()
        assert set(before) == {ann.user_id, bob.user_id, cat.user_id}
        users.update_password(bob.user_id, SecretStr("another hash"))
        users.remove(cat.user_id)
        after = users.changed_at()

    assert after[ann.user_id] == before[ann.user_id]
    assert after[bob.user_id] > before[bob.user_id]
    assert cat.user_id not in after
