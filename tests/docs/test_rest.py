"""Every command with curl that docs/rest.md shows is run, in its order, and prints what the page shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.docs.test_readme import ROOT
from tests.support.addresses import free_addresses
from tests.support.envoy import running_envoy
from tests.support.leaving_out import Required, leave_out
from tests.support.rest import RestClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import running_server
from tests.support.waiting import wait_until

_PAGE = (ROOT / "docs" / "rest.md").read_text(encoding="utf-8")
_ADDRESS = "127.0.0.1:50051"
# A command, and the block of what it prints.
_EXAMPLE = re.compile(r"^```sh\n(.*?)^```\n\n```text\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def test_the_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    if not shutil.which("curl"):
        leave_out("the commands of docs/rest.md", "install curl", Required.CLUSTER)
    examples = _EXAMPLE.findall(_PAGE)
    assert len(examples) == _PAGE.count("\ncurl ")
    (address,) = free_addresses(1)
    with (
        running_server(tmp_path / "server") as server,
        running_envoy(tmp_path / "envoy", address, [server.address] * 3),
    ):
        wait_until(lambda: RestClient(address).get("/image").status == 200, TIMEOUT, "Envoy to find the server")
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PASSWORD": server.admin.password}
        for command, shown in examples:
            printed = subprocess.run(
                ["bash", "-c", command.replace(_ADDRESS, address)],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                timeout=TIMEOUT,
                check=False,
            ).stdout.replace("\r", "")
            # What is another each time is shown as "…".
            pattern = ".+".join(map(re.escape, shown.rstrip("\n").split("…")))
            assert re.fullmatch(pattern, printed.rstrip("\n")), f"{command}printed\n{printed}"
            if "GUID" not in environment:
                environment["GUID"] = json.loads(printed)["image"]["guid"]
