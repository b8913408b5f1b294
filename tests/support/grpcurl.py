"""The real grpcurl, for tests of what the documentation tells people to type."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.programs import programs_folder

_MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"
_REQUIRED = "PIXYPROXY_TEST_REQUIRE_GRPCURL"


def grpcurl_folder() -> Path:
    """Return the folder that grpcurl lies in, building it with Go the first time where it is not on the PATH.

    Without grpcurl and Go the test is skipped, or fails where PIXYPROXY_TEST_REQUIRE_GRPCURL is set.
    """
    found = shutil.which("grpcurl")
    if found:
        return Path(found).parent
    if not shutil.which("go"):
        reason = "not run: the README's grpcurl session (neither grpcurl nor Go to build it is there)"
        if os.environ.get(_REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = programs_folder()
    with FileLock(folder / "grpcurl.lock"):
        if not (folder / "grpcurl").exists():
            subprocess.run(["go", "install", _MODULE], env={**os.environ, "GOBIN": str(folder)}, check=True)
    return folder
