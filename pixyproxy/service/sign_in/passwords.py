"""Passwords as Argon2id hashes."""

from __future__ import annotations

import base64
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError


class Passwords:
    """Hashes and checks passwords with Argon2id."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        """Take a hasher; by default, one with the parameters that argon2-cffi recommends (RFC 9106)."""
        self._hasher = hasher or PasswordHasher()
        # Checked if there is no such user, so that the answer takes as long as for a wrong password.
        self._nobodys_hash = nobodys_hash(self._hasher)

    def hash(self, password: str) -> str:
        """Return the hash of a password."""
        return self._hasher.hash(password)

    def check(self, password: str, password_hash: str | None) -> bool:
        """Return whether a hash is that of a password; for None, return False after the same time."""
        try:
            return self._hasher.verify(password_hash or self._nobodys_hash, password) and password_hash is not None
        except (VerificationError, InvalidHashError):
            return False


def nobodys_hash(hasher: PasswordHasher) -> str:
    """Return a random hash with a hasher's parameters. Hashing a password would delay the start by 100 ms."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v=19$m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}${salt}${digest}"
