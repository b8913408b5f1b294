"""The real proxy of LiteLLM, in an environment of its own: what it depends on does not go with what we depend on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.object_stores import free_port
from tests.support.openai_stand_in import RunningStandIn
from tests.support.programs import programs_folder
from tests.support.waiting import wait_until

MASTER_KEY = "sk-the-gateway-s-key"

_REQUIREMENTS = Path(__file__).with_name("litellm.txt")
_REQUIRED = "PIXYPROXY_TEST_REQUIRE_GATEWAYS"
_INSTALL_TIMEOUT = 900.0
_START_TIMEOUT = 180.0
_MAX_COMPLAINT = 500


@contextlib.contextmanager
def running_litellm(folder: Path, config: str, stand_in: RunningStandIn) -> Iterator[str]:
    """Run LiteLLM with a configuration, with the stand-in in the place of OpenAI; give its address.

    Where it cannot be installed the test is skipped, or fails where PIXYPROXY_TEST_REQUIRE_GATEWAYS is set.
    """
    python = _installed()
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
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _serves(address), _START_TIMEOUT, "LiteLLM to serve")
        assert process.poll() is None, (folder / "litellm.log").read_text()
        yield address
    finally:
        process.kill()
        process.wait()


def _serves(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health/liveliness", timeout=10):
            return True
    except OSError:
        return False


def _installed() -> Path:
    """Return the Python that has LiteLLM, after installing it the first time."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = programs_folder() / f"litellm-{version}-{digest}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            complaint = _install(folder)
            if complaint:
                reason = f"not run: LiteLLM in between (it cannot be installed: {complaint})"
                if os.environ.get(_REQUIRED):
                    pytest.fail(reason)
                pytest.skip(reason)
            (folder / "done").touch()
    return folder / "bin/python"


def _install(folder: Path) -> str:
    """Install it; return why that did not work, or ""."""
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--no-deps", "--no-compile", "--requirement", str(_REQUIREMENTS)],
    )
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT)
        except subprocess.CalledProcessError as error:
            return " ".join((error.stderr or error.stdout).split())[-_MAX_COMPLAINT:] or str(error)
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
    return ""
