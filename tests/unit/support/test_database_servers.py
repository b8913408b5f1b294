from __future__ import annotations

import pytest

from tests.support.database_servers import DatabaseKind, DatabaseServer, pointed_server


def test_url_quotes_user_and_password() -> None:
    server = DatabaseServer(DatabaseKind.MYSQL, "127.0.0.1", 3307, "me@home", "p:/@ %", "9.7.4")
    assert server.url("images") == "mysql://me%40home:p%3A%2F%40%20%25@127.0.0.1:3307/images"


def test_password_is_not_printed() -> None:
    assert "hidden" not in repr(DatabaseServer(DatabaseKind.MYSQL, "127.0.0.1", 3307, "root", "hidden", "9.7.4"))


def test_nothing_is_pointed_at_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXYPROXY_TEST_MYSQL_URL", raising=False)
    assert pointed_server(DatabaseKind.MYSQL) is None


@pytest.mark.parametrize("url", ["localhost", "postgres://localhost/", "mysql:///name"])
def test_malformed_pointer_is_a_mistake(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PIXYPROXY_TEST_MYSQL_URL", url)
    with pytest.raises(ValueError, match="PIXYPROXY_TEST_MYSQL_URL is not of the form"):
        pointed_server(DatabaseKind.MYSQL)


def test_pointer_to_nobody_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 1 is nobody's.
    monkeypatch.setenv("PIXYPROXY_TEST_MARIADB_URL", "mysql://root:secret@127.0.0.1:1/")
    with pytest.raises(ValueError, match="PIXYPROXY_TEST_MARIADB_URL points at cannot be used"):
        pointed_server(DatabaseKind.MARIADB)
