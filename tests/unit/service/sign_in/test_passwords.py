"""Hashes of passwords."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerifyMismatchError

from pixyproxy.service.sign_in.passwords import Passwords, nobodys_hash


def test_nobodys_hash_takes_as_long_as_anybodys() -> None:
    hasher = PasswordHasher()
    nobodys = nobodys_hash(hasher)

    assert extract_parameters(nobodys) == extract_parameters(Passwords().hash("a password"))
    # It is worked out and compared, and not refused unread.
    with pytest.raises(VerifyMismatchError):
        hasher.verify(nobodys, "a password")


def test_without_a_user_no_password_is_right() -> None:
    passwords = Passwords()
    passwords._nobodys_hash = passwords.hash("a password")

    assert not passwords.check("a password", None)


@pytest.mark.parametrize("stored", ["", "not-a-hash", "$argon2id$v=19$m=65536,t=3,p=4$"])
def test_with_what_is_no_hash_no_password_is_right(stored: str) -> None:
    assert not Passwords().check("a password", stored)
