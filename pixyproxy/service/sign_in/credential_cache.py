"""Remembers which credentials were found right, because to check them anew would take 77 ms each time."""

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
    """Callers by a keyed hash of their credentials: neither passwords nor anything to guess them with is kept.

    They are remembered for as long as their users stay unchanged: whoever is signed in is not checked, and so not
    refused, again.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        # Beside each caller, when its user last changed before it was found right.
        self._callers: LRUCache[bytes, tuple[Caller, datetime]] = LRUCache(_MAX_REMEMBERED)
        self._revision = ""
        self._lock = threading.Lock()

    def key_of(self, username: str, password: str) -> bytes:
        """Return what credentials are remembered under. A username holds no colon, so the pair is unambiguous."""
        return hmac.digest(self._secret, f"{username}:{password}".encode(), hashlib.sha256)

    def get(self, key: bytes) -> Caller | None:
        """Return the caller whose credentials these are, if they are remembered."""
        with self._lock:
            caller, _ = self._callers.get(key, (None, None))
            return caller

    def put(self, key: bytes, caller: Caller, changed_at: datetime, revision: str) -> None:
        """Remember credentials that were found right.

        Args:
            key: what they are remembered under.
            caller: whose they are.
            changed_at: when that user last changed, as far as was known then.
            revision: that of the users before they were looked at; where it is not the last one any more, the
                credentials may be wrong by now, and are not remembered.
        """
        with self._lock:
            if revision == self._revision:
                self._callers[key] = caller, changed_at

    def keep_unchanged(self, changed_at: Mapping[int, datetime], revision: str) -> None:
        """Forget those whose users have changed or are gone.

        Args:
            changed_at: when each user last changed, by id.
            revision: that of these users.
        """
        with self._lock:
            for key, (caller, known) in list(self._callers.items()):
                if changed_at.get(caller.user_id) != known:
                    del self._callers[key]
            self._revision = revision
