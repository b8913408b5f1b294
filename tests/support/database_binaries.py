"""Where the program of a database server comes from: the machine, an earlier install, or an install now."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from filelock import FileLock

from tests.support.database_keeping import CommandFailedError, KeptCommand
from tests.support.leaving_out import Required, leave_out
from tests.support.programs import InstallError, cache_folder, check_may_install, install_once

_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec")
"""Where servers are but the PATH of a user often does not lead."""
_MYSQL_CLIENT = "mysql-client-core"
_APT_TIMEOUT = 300.0
_DEBOOTSTRAP_TIMEOUT = 600.0
_INSTALL_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C",
    # After a plain `su`, root's PATH is the user's, and package scripts do not find their tools.
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


class DatabaseKind(StrEnum):
    """A kind of server that the repositories must work on."""

    MYSQL = "mysql"
    MARIADB = "mariadb"

    @property
    def label(self) -> str:
        """The name as it is written: "MySQL"."""
        return {DatabaseKind.MYSQL: "MySQL", DatabaseKind.MARIADB: "MariaDB"}[self]

    @property
    def size(self) -> str:
        """What an install takes on the disk, for people."""
        return {
            DatabaseKind.MYSQL: "1.1 GB of Debian in a folder",
            DatabaseKind.MARIADB: "45 MB, Debian's package in the system",
        }[self]

    @property
    def oldest(self) -> tuple[int, int]:
        """The oldest version that PixyProxy promises to work on."""
        return {DatabaseKind.MYSQL: (8, 4), DatabaseKind.MARIADB: (10, 11)}[self]

    @property
    def url_variable(self) -> str:
        """The environment variable that points at a server."""
        return f"PIXYPROXY_TEST_{self.name}_URL"


class NoServerError(Exception):
    """There is no server of a kind here; the message says why, in a few words."""


@dataclass(frozen=True)
class ServerBinary:
    """A server's program: `command` starts it, and sees `root` as the root folder."""

    kind: DatabaseKind
    version: str
    command: tuple[str, ...]
    root: Path
    work: Path
    """A folder for templates and for the data of running servers, inside `root`."""

    def inside(self, path: Path) -> str:
        """What the program must call a path."""
        return "/" + str(path.relative_to(self.root))


def supported(kind: DatabaseKind, version: str) -> bool:
    """Whether a version such as "10.11.19-MariaDB-0+deb12u1" is one that PixyProxy promises to work on."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= kind.oldest


def find_binary(kind: DatabaseKind) -> ServerBinary | None:
    """The program on this machine or of an earlier install, if there is one."""
    return _on_path(kind) or _cached(kind)


def check_installable(kind: DatabaseKind) -> None:
    """Raise NoServerError, with the reason, where a server cannot be installed."""
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
        raise NoServerError(f"{_remedy(kind)}, or run as root on Debian to have one installed")
    try:
        check_may_install(kind.label)
    except InstallError as error:
        raise NoServerError(f"{_remedy(kind)}; {error}") from error


def install_binary(kind: DatabaseKind) -> ServerBinary:
    """Install the program, once however many processes ask.

    Raises:
        NoServerError: It may not be installed here, or the install failed.
    """
    check_installable(kind)

    def install() -> None:
        try:
            {DatabaseKind.MYSQL: _install_mysql, DatabaseKind.MARIADB: _install_mariadb}[kind]()
        except (CommandFailedError, OSError) as error:
            raise InstallError(f"the install failed: {error}") from error

    try:
        return install_once(f"install-{kind}", lambda: find_binary(kind), install)
    except InstallError as error:
        raise NoServerError(f"{_remedy(kind)}; {error}") from error


def binary_of_cluster(kind: DatabaseKind, what: str) -> ServerBinary:
    """Find or install the program for several servers of a test; leave the test out where that cannot be."""
    try:
        return find_binary(kind) or install_binary(kind)
    except NoServerError as error:
        reason = str(error)
    # Outside of the handler, so that the report shows the reason once.
    return leave_out(what, reason, Required.CLUSTER)


def mysql_client_root() -> Path:
    """The folder below which MySQL's client programs are beside the server.

    Raises:
        InstallError: They cannot be had.
    """
    root = _mysql_root()
    if not root.is_dir() or os.geteuid() != 0:
        raise InstallError("mysqldump is not here: install it, or run as root on Debian")

    def install() -> None:
        # An earlier install had the server only.
        try:
            with KeptCommand(cache_folder() / "installing") as kept:
                _apt_install(kept, "--no-remove", _MYSQL_CLIENT, prefix=("/usr/sbin/chroot", str(root)))
        except (CommandFailedError, OSError) as error:
            raise InstallError(f"mysqldump is not here, and its install failed: {error}") from error

    return install_once("mysql-client", lambda: root if (root / "usr/bin/mysqldump").exists() else None, install)


def _remedy(kind: DatabaseKind) -> str:
    return f"no server found; set {kind.url_variable} to mysql://user:password@host:port/"


def _cache_folder() -> Path:
    try:
        return cache_folder()
    except InstallError as error:
        raise NoServerError(str(error)) from error


def _on_path(kind: DatabaseKind) -> ServerBinary | None:
    # MariaDB is asked for under its own name first, and under MySQL's where it is the older packaging.
    names = {DatabaseKind.MYSQL: ("mysqld",), DatabaseKind.MARIADB: ("mariadbd", "mysqld")}[kind]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    for name in names:
        if (program := shutil.which(name, path=path)) and (binary := _probe(kind, (program,), Path("/"))):
            return binary
    return None


def _cached(kind: DatabaseKind) -> ServerBinary | None:
    root = _mysql_root()
    # Only root may change the root folder.
    if kind is not DatabaseKind.MYSQL or os.geteuid() != 0 or not root.is_dir():
        return None
    return _probe(kind, ("/usr/sbin/chroot", str(root), "/usr/sbin/mysqld"), root)


def _probe(kind: DatabaseKind, command: tuple[str, ...], root: Path) -> ServerBinary | None:
    """Ask a program what it is: `mysqld` is MariaDB on many machines."""
    answer = _output([*command, "--version"])
    version = re.search(r"Ver (\d\S+)", answer)
    found = DatabaseKind.MARIADB if "MariaDB" in answer else DatabaseKind.MYSQL
    if not version or found is not kind or not supported(kind, version[1]):
        return None
    work = _cache_folder() if root == Path("/") else root / "var/lib/pixyproxy"
    # Root must say that it means it; anybody else cannot change user.
    user = ("--user=root",) if os.geteuid() == 0 else ()
    return ServerBinary(kind, version[1], (*command, "--no-defaults", *user), root, work)


def _output(command: Sequence[str]) -> str:
    """What a quick question to a program gives; nothing where it cannot be asked."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _install_mariadb() -> None:
    # The package holds the program only: nothing starts with the machine.
    with KeptCommand(_cache_folder() / "installing") as kept:
        _apt_install(kept, "mariadb-server-core")


def _mysql_root() -> Path:
    return _cache_folder() / "mysql-server"


def _install_mysql() -> None:
    """Put Debian's unstable release, the only one with MySQL, into a folder, with no more than MySQL needs."""
    root = _mysql_root()
    with KeptCommand(_cache_folder() / "installing") as kept:
        _apt_install(kept, "debootstrap", "debian-archive-keyring")
        built = kept.folder / "root"
        options = ["--force-check-gpg", "--variant=minbase", f"--include=mysql-server-core,{_MYSQL_CLIENT}"]
        kept.run(
            [*_own_mounts(), "debootstrap", *options, "sid", str(built), *_debian_mirror()],
            _DEBOOTSTRAP_TIMEOUT,
            _INSTALL_ENVIRONMENT | _apt_proxy(),
        )
        shutil.rmtree(built / "var/cache/apt/archives", ignore_errors=True)
        # One that is there gave no version: it is of no use.
        shutil.rmtree(root, ignore_errors=True)
        # Last, so that what bears the name is whole.
        built.rename(root)


def _apt_install(kept: KeptCommand, *packages: str, prefix: Sequence[str] = ()) -> None:
    """Install Debian packages; `prefix` comes before each command."""
    apt_get = [*prefix, "apt-get", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2"]
    install = [*apt_get, "install", "-y", "--no-install-recommends", *packages]
    with FileLock(_cache_folder() / "apt.lock"):
        try:
            kept.run(install, _APT_TIMEOUT, _INSTALL_ENVIRONMENT)
        except CommandFailedError:
            # A fresh machine has no package lists, an old one has stale ones.
            kept.run([*apt_get, "update"], _APT_TIMEOUT, _INSTALL_ENVIRONMENT)
            kept.run(install, _APT_TIMEOUT, _INSTALL_ENVIRONMENT)


def _own_mounts() -> list[str]:
    """What to put before a command so that the mounts it leaves behind end with it, where that is allowed."""
    unshare = ["unshare", "--mount"]
    allowed = shutil.which("unshare") and _output([*unshare, "echo", "allowed"])
    return unshare if allowed else []


def _debian_mirror() -> list[str]:
    """The mirror that this machine's apt uses, as debootstrap's argument; empty for debootstrap's own choice."""
    fields = "Created-By: Packages", "Origin: Debian", "Label: Debian"
    mirrors = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)", *fields]).split()
    return [mirror for mirror in mirrors if mirror.startswith("http")][:1]


def _apt_proxy() -> dict[str, str]:
    """The proxies that apt is told to use, for debootstrap, which does not read apt's settings."""
    proxies = {}
    for scheme in ("http", "https"):
        answer = re.fullmatch(
            r"PROXY='(.+)'\s*", _output(["apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy"])
        )
        if answer and answer[1] != "DIRECT":
            proxies[f"{scheme}_proxy"] = answer[1]
    return proxies
