"""Signing in: who is let in, who is not, and what both are told."""

from __future__ import annotations

import contextlib
import secrets
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import UserClass
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT, Refusal, refusal
from tests.support.servers import Login, Metadata, RunningServer, basic, running_server
from tests.support.threads import at_work
from tests.support.waiting import wait_until

_MAX_FAILURES = 3
_WINDOW = 6.0
_STRICT = {"PIXYPROXY_MAX_FAILED_SIGN_INS": str(_MAX_FAILURES), "PIXYPROXY_SIGN_IN_WINDOW": str(_WINDOW)}


def _refused(server: RunningServer, login: Login) -> Refusal:
    return refusal(server.images.ListImages, pb.ListImagesRequest(), login.metadata)


def _is_let_in(server: RunningServer, login: Login) -> bool:
    try:
        server.images.ListImages(pb.ListImagesRequest(), metadata=login.metadata, timeout=TIMEOUT)
    except grpc.RpcError:
        return False
    return True


def test_a_wrong_password_and_an_unknown_name_are_told_alike(server: RunningServer) -> None:
    known = server.new_login()
    wrong = _refused(server, Login(known.username, "a wrong password"))
    unknown = _refused(server, Login("nobody-of-that-name", "a wrong password"))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
    assert wrong.as_seen == unknown.as_seen
    assert _is_let_in(server, known)


@pytest.mark.parametrize(
    "change", [str.upper, lambda password: password[:-1], lambda password: password + " ", lambda password: ""]
)
def test_a_password_is_taken_exactly(server: RunningServer, change: object) -> None:
    # With letters of both cases: a random password may have none that str.upper changes.
    login = server.new_login(password=f"Aa{secrets.token_urlsafe(9)}")
    assert callable(change)
    assert _refused(server, Login(login.username, change(login.password))).reason == "CREDENTIALS_INVALID"
    assert _is_let_in(server, login)
    # What was let in before is no reason to let in what is nearly the same.
    assert _refused(server, Login(login.username, change(login.password))).reason == "CREDENTIALS_INVALID"


@pytest.mark.parametrize(
    "name", ["José", "Ζωή", "Дарья", "田中さん", "محمد", "नेहा", "\N{PANDA FACE}", "o'brien", "a b"]
)
def test_names_in_any_script(any_server: RunningServer, name: str) -> None:
    login = any_server.new_login(username=f"{name}-{secrets.token_hex(4)}")
    author = ImageClient(any_server, login)
    made = author.create()
    assert made.author == login.username
    assert author.guids(author=login.username) == [made.guid]


def test_a_name_may_be_typed_composed_or_not(any_server: RunningServer) -> None:
    login = any_server.new_login(username=unicodedata.normalize("NFC", f"Zoë-{secrets.token_hex(4)}"))
    decomposed = Login(unicodedata.normalize("NFD", login.username), login.password)
    assert decomposed.username != login.username
    made = ImageClient(any_server, decomposed).create()
    assert ImageClient(any_server, login).get(made.guid) == made
    assert _refused(any_server, Login(login.username.replace("ë", "e"), login.password)).reason == "CREDENTIALS_INVALID"
    assert _refused(any_server, Login(login.username.lower(), login.password)).reason == "CREDENTIALS_INVALID"


def test_a_password_may_hold_anything(server: RunningServer) -> None:
    for password in ("pass:word:with:colons", "Пароль пароль", "\N{PANDA FACE}" * 8, " spaces ", "x" * 1024):
        login = server.new_login(password=password)
        assert _is_let_in(server, login)


# --- Too many --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that takes few wrong passwords, and forgets them soon."""
    with running_server(tmp_path_factory.mktemp("strict-server"), _STRICT) as running:
        yield running


def _fail(server: RunningServer, username: str) -> None:
    """Fail so often that the name is refused without a look."""
    for _ in range(_MAX_FAILURES):
        assert _refused(server, Login(username, "a wrong password")).reason == "CREDENTIALS_INVALID"


def test_too_many_failures_are_refused_for_a_while(strict_server: RunningServer) -> None:
    login = strict_server.new_login()
    _fail(strict_server, login.username)
    for password in ("a wrong password", login.password):
        refused = _refused(strict_server, Login(login.username, password))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS")
        assert refused.retry_after is not None
        assert 0 < refused.retry_after <= _WINDOW
    wait_until(lambda: _is_let_in(strict_server, login), 10 * _WINDOW, "the window to end")


def test_who_is_signed_in_already_stays_so(strict_server: RunningServer) -> None:
    login = strict_server.new_login()
    assert _is_let_in(strict_server, login)
    _fail(strict_server, login.username)
    assert _refused(strict_server, Login(login.username, "a wrong password")).reason == "TOO_MANY_SIGN_INS"
    # Not even a change of other users makes the server look at these credentials again.
    other = strict_server.new_login()
    wait_until(lambda: _is_let_in(strict_server, other), TIMEOUT, "the new user to be let in")
    assert _is_let_in(strict_server, login)
    # Nothing public is kept from anybody.
    assert list(ImageClient(strict_server).page().images) == []


def test_a_name_that_nobody_has_is_throttled_just_so(strict_server: RunningServer) -> None:
    username = f"nobody-{secrets.token_hex(4)}"
    _fail(strict_server, username)
    assert _refused(strict_server, Login(username, "a wrong password")).reason == "TOO_MANY_SIGN_INS"


def test_a_success_takes_the_failures_before_it_away(strict_server: RunningServer) -> None:
    login = strict_server.new_login()
    for _ in range(_MAX_FAILURES - 1):
        _refused(strict_server, Login(login.username, "a wrong password"))
    assert _is_let_in(strict_server, login)
    assert _refused(strict_server, Login(login.username, "a wrong password")).reason == "CREDENTIALS_INVALID"


def test_a_header_that_cannot_be_read_is_no_failed_sign_in(strict_server: RunningServer) -> None:
    login = strict_server.new_login()
    for _ in range(_MAX_FAILURES + 1):
        refused = refusal(strict_server.images.ListImages, pb.ListImagesRequest(), (("authorization", "Basic x"),))
        assert refused.reason == "CREDENTIALS_INVALID"
    assert _is_let_in(strict_server, login)


# --- Because of others -----------------------------------------------------------------------------------------------

# Ten failures from an address, whatever the names, and further ones from there are slowed: one in 0.5 s.
_SOON_SLOWED = {"PIXYPROXY_MAX_FAILED_SIGN_INS": "1", "PIXYPROXY_SIGN_IN_WINDOW": "5"}
_FEW, _MANY = 3, 40
# Together, several times what may be open on a connection.
_NAMES, _CALLS_WITH_A_NAME = 12, 60


def _from(client: str, login: Login) -> Metadata:
    return *login.metadata, ("x-forwarded-for", client)


def _reason(server: RunningServer, metadata: Metadata) -> str:
    return refusal(server.images.ListImages, pb.ListImagesRequest(), metadata).reason


def _reason_at_an_import(server: RunningServer, metadata: Metadata) -> str:
    return refusal(server.images.ImportImage, iter([pb.ImportImageRequest()]), metadata).reason


@contextlib.contextmanager
def _guessing(
    server: RunningServer, guessers: int, reason: Callable[[RunningServer, Metadata], str] = _reason
) -> Iterator[None]:
    """Have somebody guess meanwhile, at names that nobody has, from the address that all tests call from."""
    stopping = threading.Event()
    told: Counter[str] = Counter()

    def guess() -> None:
        while not stopping.is_set():
            told[reason(server, basic(secrets.token_hex(8), "a wrong password"))] += 1

    with at_work(guess, guessers, stopping):
        wait_until(lambda: told["CREDENTIALS_INVALID"] > 10, TIMEOUT, "the address to be slowed")
        yield
    assert told.keys() <= {"CREDENTIALS_INVALID", "TOO_MANY_SIGN_INS", "TOO_BUSY"}


def test_failures_of_others_at_the_same_address_refuse_no_right_password(tmp_path: Path) -> None:
    with running_server(tmp_path, _SOON_SLOWED) as server:
        login = server.new_login()
        with _guessing(server, _FEW):
            assert _is_let_in(server, login)


def test_who_has_signed_in_there_before_does_not_wait_for_others(tmp_path: Path) -> None:
    with running_server(tmp_path, _SOON_SLOWED) as server:
        login = server.new_login()
        assert _is_let_in(server, login)
    # More than can be checked in time, and another process, which remembers no credentials.
    with running_server(tmp_path, _SOON_SLOWED) as server, _guessing(server, _MANY):
        assert _is_let_in(server, login)


def test_sign_ins_that_wait_take_no_slots(tmp_path: Path) -> None:
    with running_server(tmp_path, _SOON_SLOWED | {"PIXYPROXY_MAX_IMPORTS": "1"}) as server:
        login = server.new_login()
        assert _is_let_in(server, login)
        with _guessing(server, _FEW, _reason_at_an_import):
            assert _reason_at_an_import(server, login.metadata) == "INVALID_FIELD"


def test_failures_that_share_a_check_keep_no_connection_busy(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        for _ in range(_NAMES):
            wrong = basic(secrets.token_hex(8), "a wrong password")
            calls = [
                server.images.ListImages.future(pb.ListImagesRequest(), metadata=wrong, timeout=TIMEOUT)
                for _ in range(_CALLS_WITH_A_NAME)
            ]
            assert {call.code() for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
        assert _is_let_in(server, server.new_login())


def test_clients_behind_a_trusted_proxy_are_told_apart(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_TRUSTED_PROXIES": "127.0.0.1", "PIXYPROXY_MAX_FAILED_SIGN_INS": "2"}
    with running_server(tmp_path, settings) as server:
        login = server.new_login()
        wrong = Login(login.username, "a wrong password")
        for spoofed in ("", "192.0.2.1, "):
            assert _reason(server, _from(f"{spoofed}198.51.100.1", wrong)) == "CREDENTIALS_INVALID"
        assert _reason(server, _from("192.0.2.2, 198.51.100.1", login)) == "TOO_MANY_SIGN_INS"
        server.images.ListImages(pb.ListImagesRequest(), metadata=_from("198.51.100.2", login), timeout=TIMEOUT)


@pytest.mark.parametrize("trusted", ["", "198.51.100.0/24,10.0.0.1,unix"])
def test_nobody_else_is_believed_whose_call_it_is(tmp_path: Path, trusted: str) -> None:
    settings = {"PIXYPROXY_TRUSTED_PROXIES": trusted, "PIXYPROXY_MAX_FAILED_SIGN_INS": "2"}
    with running_server(tmp_path, settings) as server:
        login = server.new_login()
        wrong = Login(login.username, "a wrong password")
        for client in ("198.51.100.1", "198.51.100.2"):
            assert _reason(server, _from(client, wrong)) == "CREDENTIALS_INVALID"
        assert _reason(server, _from("198.51.100.3", login)) == "TOO_MANY_SIGN_INS"


# --- Changes ---------------------------------------------------------------------------------------------------------


def test_the_first_user_is_an_admin(tmp_path: Path) -> None:
    with running_server(tmp_path, makes_first_user=True) as server:
        assert [line.split(":")[0] for line in server.output.splitlines()] == [
            "first user",
            "password",
            f"listening on {server.address.split(':')[0]}",
        ]
        author = server.new_login()
        made = ImageClient(server, author).create()
        assert ImageClient(server, server.admin).get(made.guid) == made
        assert server.caller(server.admin).class_key is UserClass.ADMIN
        assert basic(server.admin.username, server.admin.password) == server.admin.metadata
