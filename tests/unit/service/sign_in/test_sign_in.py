"""Signing in: credentials, what is remembered of them, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr

from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    CredentialsInvalidError,
    InvalidFieldError,
    RecordNotFoundError,
    TooManySignInsError,
)
from pixyproxy.core.fields import UserClass, new_guid
from pixyproxy.core.models import Caller, UserCreate
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.service.sign_in.credential_cache import CredentialCache
from pixyproxy.service.sign_in.passwords import Passwords
from pixyproxy.service.sign_in.queue import SignInQueue
from pixyproxy.service.sign_in.throttle import SignInThrottle
from pixyproxy.service.users import UserService
from tests.support.waiting import wait_until

PASSWORD = "correct horse"
ADDRESS = "10.0.0.1"
OTHER_ADDRESS = "10.0.0.2"


def make_service(database: Database, max_failures: int = 3, refresh_interval: float = 1.0) -> UserService:
    throttle = SignInThrottle(database, max_failures, window=60)
    queue = SignInQueue(throttle.pause)
    # What counts here is how often a password is checked, not how long that takes.
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    return UserService(database, passwords, throttle, queue, CredentialCache(), refresh_interval=refresh_interval)


@pytest.fixture
def service(database: Database) -> UserService:
    return make_service(database)


@pytest.fixture
def watchful(database: Database) -> UserService:
    """A service that notices every change of users at once."""
    return make_service(database, refresh_interval=0.0)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every password that is checked against a hash, the slow way."""
    checked: list[str] = []
    check = Passwords.check

    def noting_check(self: Passwords, password: str, password_hash: str | None) -> bool:
        checked.append(password)
        return check(self, password, password_hash)

    monkeypatch.setattr(Passwords, "check", noting_check)
    return checked


def add(service: UserService, name: str = "alice", class_key: UserClass = UserClass.USER) -> None:
    service.create_user(UserCreate(username=name, password=SecretStr(PASSWORD), class_key=class_key))


@pytest.mark.parametrize(
    "change",
    [
        lambda service: add(service, "bob"),
        lambda service: service.change_password("alice", "another password"),
        lambda service: service.remove_user("alice"),
    ],
    ids=["add", "change", "remove"],
)
def test_a_change_of_a_user_is_repeated_after_a_deadlock(
    service: UserService, monkeypatch: pytest.MonkeyPatch, change: Callable[[UserService], object]
) -> None:
    add(service)
    revise, failures = UserRepository._change_revision, [ConflictError("a deadlock")]

    def revise_later(users: UserRepository) -> None:
        if failures:
            raise failures.pop()
        revise(users)

    monkeypatch.setattr(UserRepository, "_change_revision", revise_later)
    change(service)
    assert not failures


def test_right_credentials_give_the_caller(service: UserService) -> None:
    add(service, class_key=UserClass.ADMIN)

    caller = service.authenticate_user("alice", PASSWORD, ADDRESS)

    assert caller.username == "alice"
    assert caller.is_admin


def test_passwords_are_kept_as_argon2id_only(service: UserService, database: Database) -> None:
    add(service)

    with database.reading() as context:
        (row,) = context.fetch_all("SELECT * FROM users", {})
    assert row["password"].startswith("$argon2id$v=19$")
    assert PASSWORD not in str(row)


def test_verified_credentials_are_checked_once(service: UserService, checks: list[str]) -> None:
    add(service)

    callers = [service.authenticate_user("alice", PASSWORD, ADDRESS) for _ in range(5)]

    assert len(checks) == 1
    assert len(set(map(Caller.model_dump_json, callers))) == 1


def test_many_at_once_with_the_same_credentials_are_checked_at_most_twice(
    service: UserService, checks: list[str]
) -> None:
    add(service)
    together = threading.Barrier(16)

    def sign_in() -> Caller:
        together.wait()
        return service.authenticate_user("alice", PASSWORD, ADDRESS)

    with ThreadPoolExecutor(16) as pool:
        callers = [future.result() for future in [pool.submit(sign_in) for _ in range(16)]]

    assert {caller.username for caller in callers} == {"alice"}
    assert 1 <= len(checks) <= 2  # as many as are checked at a time


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("alice", "wrong horse"),
        ("nobody", PASSWORD),
        ("Alice", PASSWORD),
        ("alice ", PASSWORD),
        ("", ""),
        ("alice", ""),
    ],
)
def test_wrong_credentials_are_all_refused_alike(
    service: UserService, checks: list[str], name: str, password: str
) -> None:
    add(service)

    with pytest.raises(CredentialsInvalidError) as refused:
        service.authenticate_user(name, password, ADDRESS)

    assert refused.value.message == "The username or the password is wrong."
    assert checks == [password]  # an unknown name takes as long as a wrong password


def test_composed_and_decomposed_names_are_the_same_user(service: UserService) -> None:
    add(service, "andr\u00e9")

    assert service.authenticate_user("andre\u0301", PASSWORD, ADDRESS).username == "andr\u00e9"


def test_after_too_many_failures_even_the_right_password_waits(service: UserService, checks: list[str]) -> None:
    add(service)
    for _ in range(3):
        with pytest.raises(CredentialsInvalidError):
            service.authenticate_user("alice", "wrong horse", ADDRESS)

    with pytest.raises(TooManySignInsError) as refused:
        service.authenticate_user("alice", PASSWORD, ADDRESS)

    assert 0 < (refused.value.retry_after or 0) <= 60
    assert len(checks) == 3
    assert service.authenticate_user("alice", PASSWORD, OTHER_ADDRESS).username == "alice"


def test_after_too_many_failures_of_an_address_the_right_password_is_right(database: Database) -> None:
    service = make_service(database, max_failures=1)
    add(service)
    for number in range(10):
        with pytest.raises(CredentialsInvalidError):
            service.authenticate_user(f"nobody{number}", PASSWORD, ADDRESS)

    assert service.authenticate_user("alice", PASSWORD, ADDRESS).username == "alice"
    with pytest.raises(CredentialsInvalidError):
        service.authenticate_user("alice", "wrong horse", ADDRESS)


def test_what_was_verified_before_goes_on_working(service: UserService) -> None:
    add(service)
    service.authenticate_user("alice", PASSWORD, ADDRESS)
    for _ in range(3):
        with pytest.raises(CredentialsInvalidError):
            service.authenticate_user("alice", "wrong horse", ADDRESS)

    assert service.authenticate_user("alice", PASSWORD, ADDRESS).username == "alice"


def test_a_success_forgets_the_failures(service: UserService) -> None:
    add(service)
    for _ in range(2):
        with pytest.raises(CredentialsInvalidError):
            service.authenticate_user("alice", "wrong horse", ADDRESS)
    service.authenticate_user("alice", PASSWORD, ADDRESS)

    for _ in range(3):
        with pytest.raises(CredentialsInvalidError):
            service.authenticate_user("alice", "wrong horse", ADDRESS)


def test_servers_count_failures_together(service: UserService, database: Database) -> None:
    add(service)
    services = [service, *(make_service(database) for _ in range(2))]
    for other in services:
        with pytest.raises(CredentialsInvalidError):
            other.authenticate_user("alice", "wrong horse", ADDRESS)

    for other in services:
        with pytest.raises(TooManySignInsError):
            other.authenticate_user("alice", PASSWORD, ADDRESS)


def test_the_database_is_asked_only_where_a_password_is_checked(
    service: UserService, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(service)
    service.authenticate_user("alice", PASSWORD, ADDRESS)
    monkeypatch.setattr(SignInThrottle, "require_allowed", lambda *_: pytest.fail("was asked"))

    assert service.authenticate_user("alice", PASSWORD, ADDRESS).username == "alice"


def test_a_changed_password_counts_at_once(watchful: UserService, database: Database) -> None:
    add(watchful)
    watchful.authenticate_user("alice", PASSWORD, ADDRESS)
    # As another process would.
    make_service(database).change_password("alice", "another horse")

    with pytest.raises(CredentialsInvalidError):
        watchful.authenticate_user("alice", PASSWORD, ADDRESS)
    assert watchful.authenticate_user("alice", "another horse", ADDRESS).username == "alice"


def test_a_removed_user_is_refused_at_once(watchful: UserService) -> None:
    add(watchful)
    watchful.authenticate_user("alice", PASSWORD, ADDRESS)
    assert not watchful.remove_user("alice")

    with pytest.raises(CredentialsInvalidError):
        watchful.authenticate_user("alice", PASSWORD, ADDRESS)


def test_what_is_found_right_while_users_change_is_not_remembered(
    watchful: UserService, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password changes after the hash was read and before it is found right."""
    add(watchful)
    check = Passwords.check

    def check_while_it_changes(self: Passwords, password: str, password_hash: str | None) -> bool:
        monkeypatch.setattr(Passwords, "check", check)
        make_service(database).change_password("alice", "another horse")
        return check(self, password, password_hash)

    monkeypatch.setattr(Passwords, "check", check_while_it_changes)
    watchful.authenticate_user("alice", PASSWORD, ADDRESS)

    with pytest.raises(CredentialsInvalidError):
        watchful.authenticate_user("alice", PASSWORD, ADDRESS)


def test_while_one_looks_for_changes_others_go_on(watchful: UserService, monkeypatch: pytest.MonkeyPatch) -> None:
    add(watchful)
    watchful.authenticate_user("alice", PASSWORD, ADDRESS)
    looks, may_go_on = threading.Event(), threading.Event()
    revision = UserRepository.revision

    def wait_once(users: UserRepository) -> str:
        if not looks.is_set():
            looks.set()
            assert may_go_on.wait(30)
        return revision(users)

    monkeypatch.setattr(UserRepository, "revision", wait_once)
    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(watchful.authenticate_user, "alice", PASSWORD, ADDRESS)
        assert looks.wait(30)
        other = pool.submit(watchful.authenticate_user, "alice", PASSWORD, ADDRESS)
        try:
            assert other.result(30).username == "alice"
        finally:
            may_go_on.set()
        assert looking.result().username == "alice"


def test_changes_are_looked_for_once_a_second(service: UserService, monkeypatch: pytest.MonkeyPatch) -> None:
    add(service)
    looks: list[float] = []
    revision = UserRepository.revision

    def noted(users: UserRepository) -> str:
        looks.append(time.monotonic())
        return revision(users)

    monkeypatch.setattr(UserRepository, "revision", noted)

    def sign_in_and_count() -> int:
        service.authenticate_user("alice", PASSWORD, ADDRESS)
        return len(looks)

    wait_until(lambda: sign_in_and_count() == 2, 30, "another look")
    assert 1 <= looks[1] - looks[0] < 5


def test_credentials_are_remembered_for_one_user_each() -> None:
    cache = CredentialCache()
    now = datetime.now(UTC)
    callers = [
        Caller(user_id=number, guid=new_guid(), username=f"user{number}", class_key=UserClass.USER)
        for number in range(3)
    ]
    for caller in callers:
        cache.put(caller.username.encode(), caller, now, "")

    # The first is unchanged, the second has changed, and the third is gone.
    cache.keep_unchanged({0: now, 1: now + timedelta(microseconds=1)}, "later")

    assert [cache.get(caller.username.encode()) for caller in callers] == [callers[0], None, None]
    cache.put(b"late", callers[1], now, "")
    assert cache.get(b"late") is None
    cache.put(b"late", callers[1], now, "later")
    assert cache.get(b"late") == callers[1]


def test_the_cache_keeps_no_password() -> None:
    cache = CredentialCache()
    other = CredentialCache()

    assert PASSWORD.encode() not in cache.key_of("alice", PASSWORD)
    assert cache.key_of("alice", PASSWORD) != other.key_of("alice", PASSWORD)  # a secret of each process


_DAYS_LATER = """
import time
now = 0.0
time.monotonic = time.time = lambda: now
from datetime import UTC, datetime
from pixyproxy.core.models import Caller, UserClass
from pixyproxy.service.sign_in.credential_cache import CredentialCache

cache = CredentialCache()
caller = Caller(user_id=1, guid="123e4567-e89b-42d3-a456-426614174000", username="alice", class_key=UserClass.USER)
cache.put(b"key", caller, datetime.now(UTC), "")
now = 30 * 24 * 3600.0
print(cache.get(b"key") == caller)
"""


def test_credentials_are_remembered_as_long_as_their_user_is_unchanged() -> None:
    # In a process of its own, because libraries take hold of the clock when they are loaded.
    done = subprocess.run([sys.executable, "-c", _DAYS_LATER], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_taken_name_is_refused(service: UserService) -> None:
    add(service)

    with pytest.raises(ConstraintViolationError, match="alice is taken"):
        add(service)


@pytest.mark.parametrize(
    ("name", "password", "field"),
    [
        ("a:b", PASSWORD, "username"),
        ("", PASSWORD, "username"),
        ("x" * 65, PASSWORD, "username"),
        ("a", "", "password"),
    ],
)
def test_unusable_names_and_passwords_are_refused(service: UserService, name: str, password: str, field: str) -> None:
    user = UserCreate.model_construct(username=name, password=SecretStr(password), class_key=UserClass.USER)

    with pytest.raises(InvalidFieldError) as refused:
        service.create_user(user)

    assert [violation.field for violation in refused.value.violations] == [field]
    assert service.get_all_users() == []


def test_unknown_users_cannot_be_changed(service: UserService) -> None:
    with pytest.raises(RecordNotFoundError):
        service.change_password("nobody", PASSWORD)
    with pytest.raises(RecordNotFoundError):
        service.remove_user("nobody")


def test_users_are_listed_by_name(service: UserService) -> None:
    assert not service.has_users()
    for name in ("carol", "alice", "ボブ"):
        add(service, name)

    assert [user.username for user in service.get_all_users()] == ["alice", "carol", "ボブ"]
    assert service.has_users()
