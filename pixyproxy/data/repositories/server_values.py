"""Small named values that all servers on one database share."""

from __future__ import annotations

from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Repository


class ServerValueRepository(Repository):
    """The shared values, within one database context."""

    def get(self, name: str) -> str | None:
        """Return the value of a name, or None if it has none."""
        return self._context.fetch_value("SELECT value FROM server_values WHERE name = :name", {"name": name})

    def insert(self, name: str, value: str) -> None:
        """Store the first value of a name.

        Raises:
            ConstraintViolationError: the name has a value.
        """
        self._context.insert_row("server_values", {"guid": new_guid(), "name": name, "value": value})

    def replace(self, name: str, old: str, new: str) -> bool:
        """Store a value in place of ``old``; return False if the name has another value."""
        replaced = self._context.execute(
            "UPDATE server_values SET value = :new WHERE name = :name AND value = :old",
            {"name": name, "old": old, "new": new},
        )
        return replaced == 1

    def set(self, name: str, value: str) -> None:
        """Store the value of a name, in place of an earlier one."""
        # One statement: between two, another transaction could insert the first value.
        self._context.execute(
            "REPLACE INTO server_values (guid, name, value) VALUES (:guid, :name, :value)",
            {"guid": new_guid(), "name": name, "value": value},
        )
