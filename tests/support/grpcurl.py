"""The real grpcurl, for tests of what the documentation tells people to type."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.leaving_out import Required
from tests.support.programs import go_program

GRPCURL = go_program(
    "grpcurl",
    "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
    "40 MB",
    "the commands with grpcurl in the documents",
    Required.GRPCURL,
)


def grpcurl_folder() -> Path:
    """Return the folder that grpcurl lies in, building it with Go the first time where it is not on the PATH."""
    found = shutil.which("grpcurl")
    return Path(found).parent if found else GRPCURL.folder()
