"""Passwords: Argon2id hashes, and how many may be worked out at a time."""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pixyproxy.core.exceptions import TooBusyError

# A check takes about 77 ms of a core and 64 MiB; more than two at a time gain nothing and only take memory.
_MAX_CHECKS = 2
_WAIT_SECONDS = 5.0


class Passwords:
    """Hashes and checks passwords with Argon2id at the parameters that argon2-cffi recommends (RFC 9106)."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._turns = threading.BoundedSemaphore(_MAX_CHECKS)
        # What is checked where there is no such user, so that the answer takes as long as for a wrong password.
        self._nobodys_hash = nobodys_hash(self._hasher)

    def hash(self, password: str) -> str:
        """Return the hash to store of a password."""
        return self._hasher.hash(password)

    def check(self, password: str, password_hash: str | None) -> bool:
        """Tell whether a hash is that of a password; with None, say no in the same time. Call within ``turn``."""
        try:
            return self._hasher.verify(password_hash or self._nobodys_hash, password) and password_hash is not None
        except (VerificationError, InvalidHashError):
            return False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn to check a password.

        Raises:
            TooBusyError: it did not come in time.
        """
        if not self._turns.acquire(timeout=_WAIT_SECONDS):
            raise TooBusyError("Too many sign-ins are being checked; try again.", retry_after=1.0)
        try:
            yield
        finally:
            self._turns.release()


def nobodys_hash(hasher: PasswordHasher) -> str:
    """Return a hash with a hasher's parameters that no password has; hashing one would cost every start 100 ms."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v=19$m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}${salt}${digest}"
