"""Manages and authenticates users."""

from __future__ import annotations

import threading
import time
from typing import Any

from pydantic import SecretStr

from pixyproxy.core.exceptions import (
    ConstraintViolationError,
    CredentialsInvalidError,
    GenerationCancelledError,
    RecordNotFoundError,
)
from pixyproxy.core.models import Caller, QuotaLimits, User, UserCreate
from pixyproxy.core.text import exact_key
from pixyproxy.core.validation import validated
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.audit_outbox import COMMAND, AuditOutboxRepository
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.repositories.quotas import QuotaRepository
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.service.sign_in.credential_cache import CredentialCache
from pixyproxy.service.sign_in.passwords import Passwords
from pixyproxy.service.sign_in.queue import SignInQueue
from pixyproxy.service.sign_in.throttle import SignInThrottle


class UserService(UserServiceInterface):
    """``UserServiceInterface`` documents the methods."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        throttle: SignInThrottle,
        queue: SignInQueue,
        cache: CredentialCache,
        *,
        refresh_interval: float = 1.0,
    ) -> None:
        """Authenticate nobody yet. The cache notices changes by other processes within ``refresh_interval`` seconds."""
        self._database = database
        self._passwords = passwords
        self._throttle = throttle
        self._queue = queue
        self._cache = cache
        self._refresh_interval = refresh_interval
        self._refreshing = threading.Lock()
        self._refresh_at = 0.0

    def authenticate_user(self, username: str, password: str, address: str) -> Caller:  # noqa: D102
        name = exact_key(username)
        key = self._cache.key_of(name, password)
        self._refresh_cache()
        caller = self._cache.get(key)
        if caller is not None:
            return caller
        self._throttle.require_allowed(name, address)
        standing = self._throttle.standing_of(name, address)
        return self._queue.check(name, address, key, standing, lambda: self._check(name, password, address, key))

    def create_user(self, user: UserCreate) -> User:  # noqa: D102
        user = validated(UserCreate, user)
        hashed = user.model_copy(update={"password": self._hash(user.password.get_secret_value())})

        def insert(context: DatabaseContext) -> User:
            created = UserRepository(context).insert(hashed)
            _audit(context, "user.added", created, class_key=created.class_key.value)
            return created

        try:
            return in_transaction(self._database, insert)
        except ConstraintViolationError as error:
            raise ConstraintViolationError(
                f"The name {user.username} is taken, perhaps by a removed user whose images still exist. "
                "Choose another."
            ) from error

    def get_all_users(self) -> list[User]:  # noqa: D102
        with self._database.reading() as context:
            return UserRepository(context).get_all()

    def has_users(self) -> bool:  # noqa: D102
        with self._database.reading() as context:
            return UserRepository(context).has_any()

    def change_password(self, username: str, password: str) -> None:  # noqa: D102
        new = validated(UserCreate, {"username": username, "password": password})
        hashed = self._hash(new.password.get_secret_value())

        def change(context: DatabaseContext) -> None:
            users = UserRepository(context)
            user = users.get(username)
            users.update_password(user.id, hashed)
            _audit(context, "user.password_changed", user)

        in_transaction(self._database, change)

    def remove_user(self, username: str) -> bool:  # noqa: D102
        def remove(context: DatabaseContext) -> bool:
            users = UserRepository(context)
            user = users.get(username)
            GenerationRepository(context).cancel_all(user.id, GenerationCancelledError.of_removed_user(), COMMAND)
            _audit(context, "user.removed", user)
            return users.remove(user.id)

        return in_transaction(self._database, remove)

    def get_limits(self, username: str) -> QuotaLimits:  # noqa: D102
        with self._database.reading() as context:
            return QuotaRepository(context).get(UserRepository(context).get(username).id)

    def set_limits(self, username: str, limits: QuotaLimits) -> QuotaLimits:  # noqa: D102
        limits = validated(QuotaLimits, limits)
        with self._database.reading() as context:
            user = UserRepository(context).get(username)

        def change(context: DatabaseContext) -> QuotaLimits:
            quotas = QuotaRepository(context)
            changed = quotas.lock(user.id).model_copy(update=limits.model_dump(exclude_unset=True))
            quotas.set(user.id, changed)
            _audit(context, "user.limits_changed", user, limits=dict(changed))
            return changed

        return in_transaction(self._database, change)

    def _hash(self, password: str) -> SecretStr:
        return SecretStr(self._passwords.hash(password))

    def _check(self, name: str, password: str, address: str, key: bytes) -> Caller:
        # A call with the same credentials may have been checked while this one waited.
        known = self._cache.get(key)
        if known is not None:
            return known
        self._throttle.require_allowed(name, address)
        revision = self._cache.revision
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

    def _refresh_cache(self) -> None:
        """Remove changed users from the cache, once per ``refresh_interval``."""
        if time.monotonic() < self._refresh_at:
            return
        # While one call refreshes the cache, the others use it as it is, except at the start.
        if self._refreshing.acquire(blocking=not self._refresh_at):
            try:
                if time.monotonic() >= self._refresh_at:
                    self._refresh()
            finally:
                self._refreshing.release()

    def _refresh(self) -> None:
        with self._database.reading() as context:
            users = UserRepository(context)
            # The revision is read first, so that the next refresh notices a change in between.
            revision = users.revision()
            if revision != self._cache.revision:
                self._cache.keep_unchanged(users.changed_at(), revision)
        self._refresh_at = time.monotonic() + self._refresh_interval


def _audit(context: DatabaseContext, action: str, user: User, **facts: Any) -> None:
    AuditOutboxRepository(context).add(action, COMMAND, user.guid, username=user.username, **facts)
