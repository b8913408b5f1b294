"""What tests install where it is not here: once for all runs, below ~/.cache/pixyproxy, and never twice in a run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from tests.support.leaving_out import Required, leave_out

INSTALL_VARIABLE = "PIXYPROXY_TEST_INSTALL"
"""Set to 0 to have nothing installed for the tests."""

_TIMEOUT = 600.0
_NAME_LENGTH = 60
_LINE_LENGTH = 120
"""Characters of a failed command and of a line of its output that go into the reason."""

T = TypeVar("T")


class InstallError(Exception):
    """Something cannot be installed here; the message says why and what to do, on one line."""


def cache_folder() -> Path:
    """The folder for all that is installed.

    Raises:
        InstallError: It cannot be made.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixyproxy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(f"no folder to keep programs in: {error}") from error
    return folder.resolve()


def check_may_install(name: str) -> None:
    """Raise InstallError where the environment says that nothing is to be installed."""
    if os.environ.get(INSTALL_VARIABLE) == "0":
        raise InstallError(f"{name} is not here, and {INSTALL_VARIABLE} is 0")


def install_once(name: str, find: Callable[[], T | None], install: Callable[[], None]) -> T:
    """Install something unless it is here; one process of a run does it, and the others learn how that ended.

    Args:
        name: of the lock, and for messages.
        find: returns what is here, or None.
        install: is called where nothing is, and raises InstallError.

    Returns:
        What `find` found.

    Raises:
        InstallError: It failed, now or before in this run.
    """
    with FileLock(cache_folder() / f"{name}.lock"):
        if found := find():
            return found
        check_may_install(name)
        failed = cache_folder() / f"{name}.failed"
        # All workers of pytest-xdist have it from their run.
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        earlier_run, _, reason = failed.read_text().partition("\n") if failed.exists() else ("", "", "")
        if earlier_run == run:
            raise InstallError(reason)
        try:
            install()
        except InstallError as error:
            failed.write_text(f"{run}\n{error}")
            raise
        if found := find():
            return found
        raise InstallError(f"what was installed is not a {name} that can be used")


def run_install(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run a command that installs something.

    Raises:
        InstallError: It cannot be started, takes too long, or fails; the message holds what it said first and last.
    """
    name = textwrap.shorten(shlex.join(command), _NAME_LENGTH, placeholder=" …")
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{name} took more than {_TIMEOUT:g} s") from None
    except OSError as error:
        raise InstallError(f"{name} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        # What failed is on the first line with some programs, on the last one with others.
        lines = [
            textwrap.shorten(line, _LINE_LENGTH, placeholder=" …") for line in done.stdout.splitlines() if line.strip()
        ]
        said = " … ".join(dict.fromkeys((*lines[:1], *lines[-1:])))
        raise InstallError(f"{name} failed: {said}")


def install_debian_package(package: str) -> None:
    """Install a package of Debian, and what it needs, in the system.

    Raises:
        InstallError: This is not Debian, the user is not root, or it fails.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise InstallError(f"{package} is not here: install it, or run as root on Debian")
    # A service must not be started with the package.
    environment = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "LC_ALL": "C"}
    install = ("apt-get", "install", "-y", "--no-install-recommends", package)
    try:
        run_install(install, environment)
    except InstallError:
        # A fresh machine has no package lists, an old one has stale ones.
        run_install(("apt-get", "update"), environment)
        run_install(install, environment)


@dataclass(frozen=True)
class Program:
    """A program that is installed into a folder of its own.

    Attributes:
        name: of its command.
        size: what it takes on the disk, for people.
        purpose: what is left out without it.
        required: the variable that requires it.
        tool: the command that installs it.
        install: installs it into a folder that is there; raises InstallError.
    """

    name: str
    size: str
    purpose: str
    required: Required
    tool: str
    install: Callable[[Path], None]

    @property
    def is_due(self) -> bool:
        """Whether the first test that needs it would install it."""
        return not shutil.which(self.name) and self._find() is None and shutil.which(self.tool) is not None

    def folder(self) -> Path:
        """Return its folder, after installing it where it is not here; where that cannot be, the test is left out."""
        try:
            return self.installed()
        except InstallError as error:
            reason = str(error)
        # Outside of the handler, so that the report shows the reason once.
        return leave_out(self.purpose, reason, self.required)

    def installed(self) -> Path:
        """Return its folder, after installing it where it is not here.

        Raises:
            InstallError: It cannot be installed.
        """
        return install_once(self.name, self._find, self._install)

    @property
    def _path(self) -> Path:
        return cache_folder() / "programs" / self.name

    def _find(self) -> Path | None:
        return self._path if self._path.exists() else None

    def _install(self) -> None:
        if not shutil.which(self.tool):
            raise InstallError(f"neither {self.name} nor {self.tool} is here: install one of them")
        self._path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._path.parent) as made:
            folder = Path(made) / self.name
            folder.mkdir()
            self.install(folder)
            # Last, so that what bears the name is whole.
            folder.rename(self._path)


def go_program(name: str, package: str, size: str, purpose: str, required: Required) -> Program:
    """A program that Go builds, `package` with its version."""

    def install(folder: Path) -> None:
        run_install(["go", "install", package], env={"GOBIN": str(folder)})

    return Program(name, size, purpose, required, "go", install)


def debian_program(name: str, packages: Sequence[str], size: str, purpose: str, required: Required) -> Program:
    """A program out of Debian's packages, which are unpacked, and not installed in the system."""

    def install(folder: Path) -> None:
        download = ["apt-get", "download", *packages]
        try:
            run_install(download, cwd=folder)
        except InstallError:
            # A fresh machine has no package lists, an old one has stale ones.
            run_install(["apt-get", "update"])
            run_install(download, cwd=folder)
        for package in folder.glob("*.deb"):
            run_install(["dpkg-deb", "--extract", str(package), str(folder)])
            package.unlink()

    return Program(name, size, purpose, required, "apt-get", install)
