"""The same suites with the other driver.

The MySQL driver is there twice, in C and in Python, and the two differ in what they raise and when. Which one these
tests have is chance: pytest loads OpenSSL before PixyProxy can, and then the one in C is not there on older systems.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mysql.connector
import pytest

from tests.contract.databases import SERVERS
from tests.support.database_servers import DatabaseServer

FOLDER = Path(__file__).parent
# Those that meet the driver's errors, types and escaping; of what differs between the servers, the errors do most.
SUITES = {
    "mariadb": ("test_database.py",),
    "mysql": (
        "test_database.py",
        "test_generations_repository.py",
        "test_server_values_repository.py",
    ),
}
WITH_C = "import _mysql_connector, sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
WITHOUT_C = "import sys, pytest; sys.modules['_mysql_connector'] = None; sys.exit(pytest.main(sys.argv[1:]))"


def has_c_driver() -> bool:
    command = [sys.executable, "-c", "import _mysql_connector"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", SERVERS)
def test_the_suites_pass_with_the_other_driver(kind: str, request: pytest.FixtureRequest) -> None:
    server: DatabaseServer = request.getfixturevalue(f"{kind}_server")
    if not mysql.connector.HAVE_CEXT and not has_c_driver():
        pytest.skip("the MySQL driver has no part in C here")
    program = WITHOUT_C if mysql.connector.HAVE_CEXT else WITH_C
    suites = [str(FOLDER / suite) for suite in SUITES[kind]]

    run = subprocess.run(
        [sys.executable, "-c", program, "-q", "--tb=short", "-p", "no:cacheprovider", "-k", kind, *suites],
        cwd=FOLDER.parents[1],
        env=os.environ | {server.kind.url_variable: server.url("")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout[-10_000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) > 30 * len(suites)
