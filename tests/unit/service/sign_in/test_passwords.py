"""Hashes of passwords."""

from __future__ import annotations

import subprocess
import sys

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
