"""The programs that backups are made with: a database's own dump and client, and rsync."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.database_binaries import DatabaseKind, mysql_client_root
from tests.support.leaving_out import Required, leave_out
from tests.support.programs import InstallError, cache_folder, debian_program

_DUMPS = {DatabaseKind.MYSQL: ("mysqldump", "mysql"), DatabaseKind.MARIADB: ("mariadb-dump", "mariadb")}
# Each with the libraries that a machine does not have anyway.
PACKAGES = {
    name: debian_program(name, packages, size, "backups", Required.DATABASES)
    for name, packages, size in (
        ("mariadb-dump", ("mariadb-client", "mariadb-client-core", "libmariadb3", "libedit2"), "80 MB"),
        ("rsync", ("rsync", "libpopt0"), "1 MB"),
        ("sqlite3", ("sqlite3", "libreadline8"), "1 MB"),
    )
}


def dump_programs(kind: DatabaseKind) -> Path:
    """Return a folder with a database's dump and client.

    Where they are not on the PATH they are taken out of Debian's packages, which are not installed, as MySQL's and
    MariaDB's do not go together. Where that cannot be, the test is left out.
    """
    names = _DUMPS[kind]
    for folder in map(Path, os.get_exec_path()):
        if all(_is_of(kind, folder / name) for name in names):
            return folder
    if kind is DatabaseKind.MARIADB:
        return _wrapped(names, PACKAGES["mariadb-dump"].folder())
    try:
        return _wrapped(names, mysql_client_root())
    except InstallError as error:
        reason = str(error)
    return leave_out("backups", reason, Required.DATABASES)


def program_folder(name: str) -> Path:
    """Return a folder with rsync or sqlite3, as ``dump_programs`` does."""
    found = shutil.which(name)
    if found:
        return Path(found).parent
    return _wrapped((name,), PACKAGES[name].folder())


def _is_of(kind: DatabaseKind, program: Path) -> bool:
    """Whether a program is there, and of this kind: MariaDB's goes by both names."""
    if not os.access(program, os.X_OK):
        return False
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return ("MariaDB" in answer) is (kind is DatabaseKind.MARIADB)


def _wrapped(names: Sequence[str], root: Path) -> Path:
    """Return a folder with scripts that start the programs below a folder with the libraries that are there."""
    folder = cache_folder() / "wrapped" / names[0]
    folder.mkdir(parents=True, exist_ok=True)
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
