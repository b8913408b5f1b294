"""The outbox of the audit log: lines that are not in the log yet.

The transaction that makes a change adds its line, so that both are committed or neither is. Generation workers move the
lines to the log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pixyproxy.core import request_context
from pixyproxy.core.error_records import from_record, to_record
from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Repository, in_list

# No user can have these names, because a username has no colon.
COMMAND = "system:command"
"""The actor of what a command of the server's operator does."""
RECOVERY = "system:recovery"
"""The actor of what recovery does."""

_NO_CALL = "-"
# Generations of the first release have an empty one.
_NO_CALLS = (_NO_CALL, "")


@dataclass(frozen=True)
class PendingLine:
    """A line that is not in the log yet: its fields without the outcome, and why the change failed, or None."""

    id: int
    fields: dict[str, Any]
    error: PixyProxyException | None


class AuditOutboxRepository(Repository):
    """The outbox of the audit log, within one database context."""

    def add(
        self,
        action: str,
        actor: str,
        guid: str,
        *,
        error: PixyProxyException | None = None,
        call_id: str = _NO_CALL,
        **facts: object,
    ) -> None:
        """Add the line of a change, in the transaction that makes it, if there is an audit log.

        Args:
            action: what was done, such as ``image.deleted``.
            actor: who did it: a username, ``COMMAND`` or ``RECOVERY``.
            guid: the guid of the image, generation or user.
            error: why it failed, or None.
            call_id: the id of the call that asked for it, unless it is the running one.
            **facts: further fields. Nothing that callers have written: no prompt, filename or tag.
        """
        if not self._context.is_audited:
            return
        running_call = request_context.call_id.get()
        call_id = call_id if running_call == _NO_CALL else running_call
        line = {
            "id": new_guid(),
            "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "action": action,
            "actor": actor,
            "guid": guid,
            **facts,
            **({} if call_id in _NO_CALLS else {"call_id": call_id}),
        }
        self._context.insert_row("audit_outbox", {"line": json.dumps(line), "error": error and to_record(error)})

    def get_oldest(self, limit: int) -> list[int]:
        """Return the ids of the oldest lines."""
        return self._context.fetch_values("SELECT id FROM audit_outbox ORDER BY id LIMIT :limit", {"limit": limit})

    def lock(self, ids: Sequence[int]) -> list[PendingLine]:
        """Lock and return those of the lines that still exist, in order; other transactions that lock them wait."""
        rows = self._context.fetch_all(
            f"SELECT id, line, error FROM audit_outbox WHERE id IN ({in_list(ids)}) "  # noqa: S608
            f"ORDER BY id{self._context.for_update}",
            {},
        )
        return [
            PendingLine(row["id"], json.loads(row["line"]), row["error"] and from_record(row["error"])) for row in rows
        ]

    def delete(self, ids: Sequence[int]) -> None:
        """Delete lines that are in the log."""
        self._context.execute(f"DELETE FROM audit_outbox WHERE id IN ({in_list(ids)})", {})  # noqa: S608
