"""Hashes of passwords."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import VerificationError, VerifyMismatchError
from argon2.low_level import error_to_str

from pixyproxy.core.exceptions import TooBusyError
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


# In a process of its own, whose memory runs out.
_CHECK_WITHOUT = """
import resource
from pathlib import Path
from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.service.sign_in.passwords import Passwords

passwords = Passwords()
hashed = passwords.hash("a password")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {megabytes} * 2**20,) * 2)
try:
    print(passwords.check("a password", hashed))
except TooBusyError:
    print("too busy")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("megabytes", "answer"), [(20, "too busy"), (500, "True")])
def test_a_right_password_is_not_wrong_where_memory_runs_out(megabytes: int, answer: str) -> None:
    code = _CHECK_WITHOUT.format(megabytes=megabytes)
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == answer


class _Failing(PasswordHasher):
    """Fails with one of Argon2's errors."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
        raise VerificationError(error_to_str(self._number))


@pytest.mark.parametrize("number", [-22, -33], ids=["no memory", "no thread"])
def test_a_check_that_was_not_made_may_be_repeated_soon(number: int) -> None:
    with pytest.raises(TooBusyError) as caught:
        Passwords(_Failing(number)).check("a password", "any hash")
    assert caught.value.retry_after == 1.0


def test_any_other_failure_of_a_check_is_a_wrong_password() -> None:
    assert not Passwords(_Failing(-35)).check("a password", "any hash")
