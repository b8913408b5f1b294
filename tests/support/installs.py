"""Says what `make test` is about to install, and how large that is: ``python -m tests.support.installs``.

With the argument ``gallery``, what `make test-gallery` is about to install.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.clients.projects import due
from tests.support.backup_programs import PACKAGES
from tests.support.chromium import chromium_is_due
from tests.support.database_binaries import DatabaseKind
from tests.support.database_servers import needs_install
from tests.support.envoy import ENVOY
from tests.support.grpcurl import GRPCURL
from tests.support.litellm_proxy import LITELLM
from tests.support.object_stores import AZURITE, VERSITYGW
from tests.support.portkey_gateway import PORTKEY
from tests.support.programs import INSTALL_VARIABLE, InstallError, cache_folder, check_may_install
from tests.support.promtool import PROMTOOL


def expected_installs() -> Iterator[str]:
    """What all tests together would install on this machine, each with its size."""
    for kind in DatabaseKind:
        if needs_install(kind):
            yield f"{kind.label} ({kind.size})"
    for program in (VERSITYGW, AZURITE, ENVOY, GRPCURL, PROMTOOL, LITELLM, PORTKEY, *PACKAGES.values()):
        if program.is_due:
            yield f"{program.name} ({program.size})"
    projects = due()
    if projects:
        names = ", ".join(project.language for project in projects)
        yield f"clients in {names} (80 MB each, and what their package managers keep)"


def gallery_installs() -> Iterator[str]:
    """The same for the tests of the gallery."""
    if ENVOY.is_due:
        yield f"{ENVOY.name} ({ENVOY.size})"
    if chromium_is_due():
        yield "Chromium (415 MB, a package of Debian)"


def main() -> None:
    """Print it, where there is anything."""
    try:
        check_may_install("anything")
        installs = list(gallery_installs() if "gallery" in sys.argv[1:] else expected_installs())
    except InstallError:
        return
    if installs:
        print(  # noqa: T201
            f"The tests install what is not here, once, most of it in {cache_folder()}:",
            *installs,
            f"{INSTALL_VARIABLE}=0 leaves out what is not here.",
            sep="\n  ",
        )


if __name__ == "__main__":
    main()
