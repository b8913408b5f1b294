"""The real proxy of LiteLLM, in an environment of its own: what it depends on does not go with what we depend on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.addresses import free_port
from tests.support.gateways import running_gateway
from tests.support.leaving_out import Required
from tests.support.openai_stand_in import RunningStandIn
from tests.support.programs import Program, run_install

MASTER_KEY = "sk-the-gateway-s-key"

_REQUIREMENTS = Path(__file__).with_name("litellm.txt")
_START_TIMEOUT = 180.0


def _install(folder: Path) -> None:
    run_install([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_install([*pip, "--no-deps", "--no-compile", "--requirement", str(_REQUIREMENTS)])


_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LITELLM = Program(
    name=f"litellm-{_PYTHON}-{hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]}",
    size="385 MB",
    purpose="LiteLLM between PixyProxy and the provider",
    required=Required.GATEWAYS,
    tool=sys.executable,
    install=_install,
)


@contextlib.contextmanager
def running_litellm(folder: Path, config: str, stand_in: RunningStandIn) -> Iterator[str]:
    """Run LiteLLM with a configuration, with the stand-in in the place of OpenAI; give its address.

    Where it cannot be installed the test is left out.
    """
    python = LITELLM.folder() / "bin/python"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    port = free_port()
    command = [str(python), "-m", "litellm.proxy.proxy_cli", "--config", str(folder / "config.yaml")]
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "LITELLM_MASTER_KEY": MASTER_KEY,
        # Otherwise it fetches a list of prices as it starts.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": stand_in.api_key,
        "OPENAI_BASE_URL": stand_in.base_url,  # for models
        "OPENAI_API_BASE": stand_in.base_url.removesuffix("/v1"),  # for what is passed through
    }
    address = f"http://127.0.0.1:{port}"
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    with running_gateway(
        "litellm", command, environment, folder, address, "/health/liveliness", _START_TIMEOUT
    ) as running:
        yield running
