"""The base class of repositories whose rows are claimed by a worker, which owns them under a lease."""

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
        states: the states of a row.
    """

    states: ClassVar[type[Enum]]

    def _change(self, sql: str, **parameters: Any) -> bool:
        """Run a statement; return whether it has changed one row.

        Besides ``parameters`` it may use ``:nobody``, ``:now``, and the name of each state in lower case.
        """
        usual = {
            **{state.name.lower(): state.value for state in self.states},
            "nobody": NOBODY,
            "now": datetime.now(UTC),
        }
        return self._context.execute(sql, usual | parameters) == 1
