"""Passwords as Argon2id hashes."""

from __future__ import annotations

import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError


class Passwords:
    """Hashes and checks passwords with Argon2id at the parameters that argon2-cffi recommends (RFC 9106)."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        # What is checked where there is no such user, so that the answer takes as long as for a wrong password.
        self._nobodys_hash = self._hasher.hash(secrets.token_urlsafe())

    def hash(self, password: str) -> str:
        """Return the hash to store of a password."""
        return self._hasher.hash(password)

    def check(self, password: str, password_hash: str | None) -> bool:
        """Tell whether a hash is that of a password; with None, say no in the same time."""
        try:
            return self._hasher.verify(password_hash or self._nobodys_hash, password) and password_hash is not None
        except (VerificationError, InvalidHashError):
            return False
