"""Passwords as Argon2id hashes."""

from __future__ import annotations

import base64
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import error_to_str

from pixyproxy.core.exceptions import TooBusyError

# Argon2's numbers of errors: there is no memory, or no thread, for a check.
_NOT_CHECKED = {error_to_str(number) for number in (-22, -33)}


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
        """Return whether a hash is that of a password; for None, return False after the same time.

        Raises:
            TooBusyError: the system has no memory or no thread left to check it.
        """
        try:
            return self._hasher.verify(password_hash or self._nobodys_hash, password) and password_hash is not None
        except (VerificationError, InvalidHashError) as error:
            if str(error) in _NOT_CHECKED:
                raise TooBusyError("Too little memory to check a password; try again.", retry_after=1.0) from error
            return False


def nobodys_hash(hasher: PasswordHasher) -> str:
    """Return a random hash with a hasher's parameters. Hashing a password would delay the start by 100 ms."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    return f"$argon2id$v=19$m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}${salt}${digest}"
