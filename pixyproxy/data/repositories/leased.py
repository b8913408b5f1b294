"""What the repositories of rows have in common that a worker claims and owns under a lease."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any, ClassVar

from pixyproxy.data.database import Repository

NOBODY = ""
"""The owner of a row that no worker has claimed."""


class LeasedRepository(Repository):
    """A repository of such rows.

    Attributes:
        states: the states of a row. In SQL, the name of one in lower case is a parameter that stands for it.
    """

    states: ClassVar[type[Enum]]

    def _change(self, sql: str, **parameters: Any) -> bool:
        """Run a statement, which may name all states, nobody and now; return whether it has changed one row."""
        usual = {
            **{state.name.lower(): state.value for state in self.states},
            "nobody": NOBODY,
            "now": datetime.now(UTC),
        }
        return self._context.execute(sql, usual | parameters) == 1
