"""The users."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from pixyproxy.core.exceptions import RecordNotFoundError
from pixyproxy.core.fields import UserClass, new_guid
from pixyproxy.core.models import User, UserCreate
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import Repository
from pixyproxy.data.repositories.server_values import ServerValueRepository

_COLUMNS = "id, guid, username, password, class_key, created_at, updated_at"
_REVISION = "users_revision"


class UserRepository(Repository):
    """The users, within one database context."""

    def insert(self, user: UserCreate) -> User:
        """Add a user, whose ``password`` must be a hash.

        Raises:
            ConstraintViolationError: the name is taken, perhaps by a removed user who has images.
        """
        now = datetime.now(UTC)
        row = _user_to_dict(user) | {"guid": new_guid(), "created_at": now, "updated_at": now}
        user_id = self._context.insert_row("users", row)
        self._change_revision()
        return _dict_to_user(row | {"id": user_id})

    def get(self, username: str) -> User:
        """Return the user with a name.

        Raises:
            RecordNotFoundError: there is none, or the user was removed.
        """
        row = self._context.fetch_one(
            f"SELECT {_COLUMNS} FROM users WHERE username_key = :username_key AND removed_at IS NULL",  # noqa: S608
            {"username_key": exact_key(username)},
        )
        if row is None:
            raise RecordNotFoundError(f"There is no user {username}.")
        return _dict_to_user(row)

    def find_id(self, username: str) -> int | None:
        """Return the id of the user with a name, perhaps a removed one, or None."""
        return self._context.fetch_value(
            "SELECT id FROM users WHERE username_key = :username_key", {"username_key": exact_key(username)}
        )

    def get_all(self) -> list[User]:
        """Return all users by name."""
        sql = f"SELECT {_COLUMNS} FROM users WHERE removed_at IS NULL ORDER BY username_key"  # noqa: S608
        return [_dict_to_user(row) for row in self._context.fetch_all(sql, {})]

    def has_any(self) -> bool:
        """Tell whether there is a user, perhaps a removed one."""
        return self._context.fetch_one("SELECT 1 FROM users LIMIT 1", {}) is not None

    def update_password(self, user_id: int, password: SecretStr) -> None:
        """Replace the password hash of a user."""
        self._context.execute(
            "UPDATE users SET password = :password, updated_at = :now WHERE id = :id",
            {"id": user_id, "password": password.get_secret_value(), "now": datetime.now(UTC)},
        )
        self._change_revision()

    def remove(self, user_id: int) -> bool:
        """Remove a user; return whether the name stays taken: images, generations or usage refer to the user."""
        parameters = {"id": user_id, "now": datetime.now(UTC)}
        self._change_revision()
        is_author = self._context.fetch_one(
            """
            SELECT 1 FROM users WHERE id = :id AND (
              EXISTS (SELECT 1 FROM images WHERE author_id = users.id)
              OR EXISTS (SELECT 1 FROM generations WHERE author_id = users.id)
              OR EXISTS (SELECT 1 FROM usage_days WHERE author_id = users.id)
              OR EXISTS (SELECT 1 FROM usage_tail WHERE author_id = users.id))
            """,
            parameters,
        )
        if is_author:
            self._context.execute(
                "UPDATE users SET removed_at = :now, updated_at = :now, password = '' WHERE id = :id", parameters
            )
            return True
        self._context.execute("DELETE FROM quotas WHERE author_id = :id", {"id": user_id})
        self._context.execute("DELETE FROM users WHERE id = :id", {"id": user_id})
        return False

    def changed_at(self) -> dict[int, datetime]:
        """Return the time of the last change of each user, by id."""
        rows = self._context.fetch_all("SELECT id, updated_at FROM users WHERE removed_at IS NULL", {})
        return {row["id"]: row["updated_at"] for row in rows}

    def revision(self) -> str:
        """Return a value that every change of any user changes."""
        return ServerValueRepository(self._context).get(_REVISION) or ""

    def _change_revision(self) -> None:
        ServerValueRepository(self._context).set(_REVISION, new_guid())


def _user_to_dict(user: UserCreate) -> dict[str, Any]:
    return {
        "username": user.username,
        "username_key": exact_key(user.username),
        "password": user.password.get_secret_value(),
        "class_key": user.class_key.value,
    }


def _dict_to_user(row: Mapping[str, Any]) -> User:
    read = {"password": SecretStr(row["password"]), "class_key": UserClass(row["class_key"])}
    return User.model_construct(**{**row, **read})
