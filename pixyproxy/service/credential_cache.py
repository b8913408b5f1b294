"""Remembers which credentials were found right, because to check them anew would take 77 ms each time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading

from cachetools import TTLCache

from pixyproxy.core.models import Caller

_MAX_REMEMBERED = 10_000
_SECONDS_TO_LIVE = 60.0


class CredentialCache:
    """Callers by a keyed hash of their credentials: neither passwords nor anything to guess them with is kept."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._callers: TTLCache[bytes, Caller] = TTLCache(_MAX_REMEMBERED, ttl=_SECONDS_TO_LIVE)
        self._revision = ""
        self._lock = threading.Lock()

    def key_of(self, username: str, password: str) -> bytes:
        """Return what credentials are remembered under. A username holds no colon, so the pair is unambiguous."""
        return hmac.digest(self._secret, f"{username}:{password}".encode(), hashlib.sha256)

    def get(self, key: bytes) -> Caller | None:
        """Return the caller whose credentials these are, if they are remembered."""
        with self._lock:
            return self._callers.get(key)

    def put(self, key: bytes, caller: Caller, revision: str) -> None:
        """Remember credentials that were found right among the users of ``revision``, if those still are the users."""
        with self._lock:
            if revision == self._revision:
                self._callers[key] = caller

    def users_are_at(self, revision: str) -> None:
        """Forget everything if the users have changed since the last time."""
        with self._lock:
            if revision != self._revision:
                self._callers.clear()
                self._revision = revision
