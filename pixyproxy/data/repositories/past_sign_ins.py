"""Past sign-ins: which user names have signed in from which addresses."""

from __future__ import annotations

from datetime import datetime

from pixyproxy.data.database import Repository

_MOST_DELETED = 1000


class PastSignInRepository(Repository):
    """The sign-ins that succeeded, within one database context. An origin is 64 characters of ASCII."""

    def last(self, origin: str) -> datetime | None:
        """Return the time of the last one from an origin, or None if there was none."""
        return self._context.fetch_value(
            "SELECT signed_in_at FROM past_sign_ins WHERE origin = :origin", {"origin": origin}
        )

    def set(self, origin: str, signed_in_at: datetime) -> None:
        """Record a sign-in, in place of the last one from that origin."""
        self._context.execute(
            "REPLACE INTO past_sign_ins (origin, signed_in_at) VALUES (:origin, :signed_in_at)",
            {"origin": origin, "signed_in_at": signed_in_at},
        )

    def delete_before(self, moment: datetime) -> None:
        """Delete the oldest ones before a moment, a thousand at most, one by one as in ``FailedSignInRepository``."""
        rows = self._context.fetch_all(
            "SELECT id FROM past_sign_ins WHERE signed_in_at < :moment ORDER BY signed_in_at LIMIT :most",
            {"moment": moment, "most": _MOST_DELETED},
        )
        self._context.execute_many("DELETE FROM past_sign_ins WHERE id = :id", rows)
