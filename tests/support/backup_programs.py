"""The programs that backups are made with: a database's own dump and client, and rsync."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

from tests.support.database_binaries import DatabaseKind, mysql_client_root
from tests.support.database_servers import NOT_RUN, REQUIRE_VARIABLE
from tests.support.programs import programs_folder

_DUMPS = {DatabaseKind.MYSQL: ("mysqldump", "mysql"), DatabaseKind.MARIADB: ("mariadb-dump", "mariadb")}
# With the libraries that a machine does not have anyway.
_MARIADB_PACKAGES = ("mariadb-client", "mariadb-client-core", "libmariadb3", "libedit2")
_RSYNC_PACKAGES = ("rsync", "libpopt0")


def dump_programs(kind: DatabaseKind) -> Path:
    """Return a folder with a database's dump and client.

    Where they are not on the PATH they are taken out of Debian's packages, which are not installed, as MySQL's and
    MariaDB's do not go together. Where that cannot be, the test is skipped, or fails where servers are required.
    """
    names = _DUMPS[kind]
    for folder in map(Path, os.get_exec_path()):
        if all(_is_of(kind, folder / name) for name in names):
            return folder
    if kind is DatabaseKind.MARIADB:
        return _wrapped(names, _unpacked("mariadb-client", _MARIADB_PACKAGES))
    root = mysql_client_root()
    if root is None:
        _cannot_run(names[0])
    return _wrapped(names, root)


def program_folder(name: str) -> Path:
    """Return a folder with rsync or sqlite3, as ``dump_programs`` does."""
    found = shutil.which(name)
    if found:
        return Path(found).parent
    packages = {"rsync": _RSYNC_PACKAGES, "sqlite3": ("sqlite3", "libreadline8")}
    return _wrapped((name,), _unpacked(name, packages[name]))


def _is_of(kind: DatabaseKind, program: Path) -> bool:
    """Whether a program is there, and of this kind: MariaDB's goes by both names."""
    if not os.access(program, os.X_OK):
        return False
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return ("MariaDB" in answer) is (kind is DatabaseKind.MARIADB)


def _unpacked(name: str, packages: Sequence[str]) -> Path:
    """Return a folder with what is in these packages, fetching them the first time."""
    if not shutil.which("apt-get"):
        _cannot_run(name)
    folder = programs_folder() / f"{name}-package"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            fetched = programs_folder() / f"{name}-fetched"
            shutil.rmtree(fetched, ignore_errors=True)
            fetched.mkdir()
            _download(packages, fetched)
            for package in fetched.glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, fetched], check=True)
                package.unlink()
            # Last, so that what bears the name is whole.
            fetched.rename(folder)
    return folder


def _download(packages: Sequence[str], folder: Path) -> None:
    download = ["apt-get", "download", *packages]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode != 0:
        # A fresh machine has no package lists, an old one has stale ones.
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        subprocess.run(download, cwd=folder, check=True, capture_output=True)


def _wrapped(names: Sequence[str], root: Path) -> Path:
    """Return a folder with scripts that start the programs below a folder with the libraries that are there."""
    folder = programs_folder() / f"{names[0]}-programs"
    folder.mkdir(exist_ok=True)
    libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu"))
    # A whole system brings its own loader: libraries of another release do not go with this machine's.
    loaders = [*root.glob("usr/lib*/ld-linux-*"), *Path("/").glob("lib*/ld-linux-*")]
    for name in names:
        command = shlex.join(map(str, [loaders[0], "--library-path", libraries, root / "usr/bin" / name]))
        script = folder / f"{name}.{os.getpid()}"
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
        script.replace(folder / name)
    return folder


def _cannot_run(name: str) -> NoReturn:
    reason = f"{NOT_RUN}backups ({name} is not there, and cannot be had)"
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason}, but {REQUIRE_VARIABLE} is set", pytrace=False)
    pytest.skip(reason)
