"""Caches verified credentials, because each check of a password takes 77 ms."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Mapping
from datetime import datetime

from cachetools import LRUCache

from pixyproxy.core.models import Caller

_MAX_REMEMBERED = 10_000


class CredentialCache:
    """Callers by a keyed hash of their credentials. The key is random, so that no password can be guessed from it.

    An entry stays until its user changes.

    Attributes:
        revision: that of the users when the cache was last refreshed.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        # Each caller, and when its user had last changed before the check.
        self._callers: LRUCache[bytes, tuple[Caller, datetime]] = LRUCache(_MAX_REMEMBERED)
        self.revision = ""
        self._lock = threading.Lock()

    def key_of(self, username: str, password: str) -> bytes:
        """Return the key of credentials. A username has no colon, so that the pair is unambiguous."""
        return hmac.digest(self._secret, f"{username}:{password}".encode(), hashlib.sha256)

    def get(self, key: bytes) -> Caller | None:
        """Return the caller with these credentials, or None."""
        with self._lock:
            caller, _ = self._callers.get(key, (None, None))
            return caller

    def put(self, key: bytes, caller: Caller, changed_at: datetime, revision: str) -> None:
        """Add verified credentials.

        Args:
            key: of ``key_of``.
            caller: the user.
            changed_at: when the user had last changed before the check.
            revision: that of the cache before the check. If the cache was refreshed since, nothing is added, because
                the password may have changed.
        """
        with self._lock:
            if revision == self.revision:
                self._callers[key] = caller, changed_at

    def keep_unchanged(self, changed_at: Mapping[int, datetime], revision: str) -> None:
        """Remove users that have changed or do not exist any more, given the last change of each, by id."""
        with self._lock:
            for key, (caller, known) in list(self._callers.items()):
                if changed_at.get(caller.user_id) != known:
                    del self._callers[key]
            self.revision = revision
