from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.database_binaries import DatabaseKind, NoServerError, check_installable, find_binary, supported

MYSQL = "/usr/sbin/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))"
OLD_MYSQL = "mysqld  Ver 8.0.44 for Linux on x86_64"
MARIADB = "mysqld  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)"


@pytest.fixture(autouse=True)
def _no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tests.support.database_binaries._SYSTEM_FOLDERS", ())


def _program(path: Path, version: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)


def test_finds_a_program_on_the_path(tmp_path: Path) -> None:
    _program(tmp_path / "mysqld", MYSQL)
    binary = find_binary(DatabaseKind.MYSQL)
    assert binary is not None
    assert binary.version == "9.7.4-2"
    assert binary.command[:2] == (str(tmp_path / "mysqld"), "--no-defaults")


def test_mysqld_that_is_mariadb_is_mariadb(tmp_path: Path) -> None:
    _program(tmp_path / "mysqld", MARIADB)
    assert find_binary(DatabaseKind.MYSQL) is None
    assert find_binary(DatabaseKind.MARIADB) is not None


@pytest.mark.parametrize("answer", [OLD_MYSQL, "", "no such option"])
def test_leaves_out_what_is_too_old_or_gives_no_version(tmp_path: Path, answer: str) -> None:
    _program(tmp_path / "mysqld", answer)
    assert find_binary(DatabaseKind.MYSQL) is None


@pytest.mark.parametrize(
    ("kind", "version", "expected"),
    [
        (DatabaseKind.MYSQL, "8.4.0", True),
        (DatabaseKind.MYSQL, "8.0.44", False),
        (DatabaseKind.MARIADB, "10.11.19-MariaDB-0+deb12u1", True),
        (DatabaseKind.MARIADB, "10.6.22-MariaDB", False),
        (DatabaseKind.MARIADB, "11.4.2-MariaDB", True),
        (DatabaseKind.MYSQL, "", False),
    ],
)
def test_supported_versions(kind: DatabaseKind, version: str, expected: bool) -> None:
    assert supported(kind, version) is expected


def test_installing_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXYPROXY_TEST_INSTALL", "0")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(NoServerError, match="set PIXYPROXY_TEST_MYSQL_URL to mysql://"):
        check_installable(DatabaseKind.MYSQL)


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXYPROXY_TEST_INSTALL", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoServerError, match="run as root on Debian"):
        check_installable(DatabaseKind.MARIADB)


def test_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _program(tmp_path / "mysqld", MYSQL)
    with pytest.raises(NoServerError, match="no folder to keep programs in"):
        find_binary(DatabaseKind.MYSQL)
