"""The user service."""

from __future__ import annotations

import logging
import threading
import time

from pydantic import SecretStr

from pixyproxy.core.exceptions import ConstraintViolationError, CredentialsInvalidError, RecordNotFoundError
from pixyproxy.core.models import Caller, User, UserCreate
from pixyproxy.core.text import exact_key
from pixyproxy.core.validation import validated
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.service.sign_in.credential_cache import CredentialCache
from pixyproxy.service.sign_in.passwords import Passwords
from pixyproxy.service.sign_in.queue import SignInQueue
from pixyproxy.service.sign_in.throttle import SignInThrottle

_logger = logging.getLogger(__name__)

# How long another process's change of a user may go unnoticed here.
_LOOK_FOR_CHANGES_SECONDS = 1.0
_NEVER = float("-inf")


class UserService(UserServiceInterface):
    """Who may sign in; ``UserServiceInterface`` documents the methods."""

    def __init__(self, database: Database, throttle: SignInThrottle) -> None:
        self._database = database
        self._throttle = throttle
        self._passwords = Passwords()
        self._queue = SignInQueue(throttle.pause)
        self._cache = CredentialCache()
        self._looking = threading.Lock()
        self._revision = ""
        self._looked_at = _NEVER

    def authenticate_user(self, username: str, password: str, address: str) -> Caller:  # noqa: D102
        name = exact_key(username)
        key = self._cache.key_of(name, password)
        self._look_for_changes()
        caller = self._cache.get(key)
        if caller is not None:
            return caller
        self._throttle.require_allowed(name, address)
        standing = self._throttle.standing_of(name, address)
        return self._queue.check(name, address, key, standing, lambda: self._check(name, password, address, key))

    def create_user(self, user: UserCreate) -> User:  # noqa: D102
        user = validated(UserCreate, user)
        hashed = user.model_copy(update={"password": self._hash(user.password.get_secret_value())})
        try:
            with self._database.transaction() as context:
                created = UserRepository(context).insert(hashed)
                context.commit()
        except ConstraintViolationError as error:
            raise ConstraintViolationError(
                f"The name {user.username} is taken, perhaps by a removed user whose images still carry it. "
                "Choose another."
            ) from error
        return created

    def get_all_users(self) -> list[User]:  # noqa: D102
        with self._database.reading() as context:
            return UserRepository(context).get_all()

    def has_users(self) -> bool:  # noqa: D102
        with self._database.reading() as context:
            return UserRepository(context).has_any()

    def change_password(self, username: str, password: str) -> None:  # noqa: D102
        # A new user's rules, which are those for any password.
        new = validated(UserCreate, {"username": username, "password": password})
        hashed = self._hash(new.password.get_secret_value())
        with self._database.transaction() as context:
            users = UserRepository(context)
            users.update_password(users.get(username).id, hashed)
            context.commit()

    def remove_user(self, username: str) -> bool:  # noqa: D102
        with self._database.transaction() as context:
            users = UserRepository(context)
            keeps_name = users.remove(users.get(username).id)
            context.commit()
        return keeps_name

    def _hash(self, password: str) -> SecretStr:
        return SecretStr(self._passwords.hash(password))

    def _check(self, name: str, password: str, address: str, key: bytes) -> Caller:
        # Others may have been here while this one waited.
        known = self._cache.get(key)
        if known is not None:
            return known
        self._throttle.require_allowed(name, address)
        revision = self._revision
        user = self._find(name)
        is_right = self._passwords.check(password, user.password.get_secret_value() if user else None)
        if user is None or not is_right:
            self._throttle.note_failure(name, address)
            raise CredentialsInvalidError("The username or the password is wrong.")
        self._throttle.note_success(name, address)
        caller = Caller(user_id=user.id, guid=user.guid, username=user.username, class_key=user.class_key)
        self._cache.put(key, caller, user.updated_at, revision)
        return caller

    def _find(self, name: str) -> User | None:
        try:
            with self._database.reading() as context:
                return UserRepository(context).get(name)
        except RecordNotFoundError:
            return None

    def _look_for_changes(self) -> None:
        """Notice, once a second, whether any user was changed, here or by another process."""
        if not self._must_look():
            return
        # But for the first time, the others need not wait for the one that looks: what they remember is as good as
        # it was a moment ago.
        if self._looking.acquire(blocking=self._looked_at == _NEVER):
            try:
                if self._must_look():
                    self._look()
            finally:
                self._looking.release()

    def _must_look(self) -> bool:
        return time.monotonic() - self._looked_at >= _LOOK_FOR_CHANGES_SECONDS

    def _look(self) -> None:
        with self._database.reading() as context:
            users = UserRepository(context)
            revision = users.revision()
            if revision != self._revision:
                # The revision was read first: what changes in between is noticed the next time.
                self._cache.keep_unchanged(users.changed_at(), revision)
        self._revision = revision
        self._looked_at = time.monotonic()
