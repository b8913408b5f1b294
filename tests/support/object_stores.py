"""Real object stores as processes of their own: versitygw speaks as S3 does, Azurite as Azure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tests.support.addresses import free_port
from tests.support.leaving_out import Required
from tests.support.programs import Program, go_program, run_install
from tests.support.waiting import wait_until

_AZURITE_PACKAGE = "azurite@3.37.0"
_BUCKET = "pictures"
_START_TIMEOUT = 30.0
# The account that every Azurite has; not a secret.
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def _install_azurite(folder: Path) -> None:
    quietly = ("--no-audit", "--no-fund", "--loglevel=error")
    run_install(["npm", "install", *quietly, _AZURITE_PACKAGE, "--prefix", str(folder)])


VERSITYGW = go_program(
    "versitygw",
    "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
    "80 MB",
    "an object store that speaks S3",
    Required.OBJECT_STORES,
)
AZURITE = Program(
    "azurite", "370 MB", "an object store that speaks as Azure does", Required.OBJECT_STORES, "npm", _install_azurite
)


@dataclass(frozen=True)
class RunningObjectStore:
    """An object store that serves.

    Attributes:
        url: its one bucket, as `PIXYPROXY_IMAGE_STORE` takes it.
        env: the variables of the cloud that lead to it.
        port: where it listens on 127.0.0.1.
        folder: where it keeps each object of the bucket as a file under its key; None where it does not.
    """

    url: str
    env: dict[str, str]
    port: int
    folder: Path | None = None


@contextmanager
def running_s3(folder: Path) -> Iterator[RunningObjectStore]:
    """Run an S3 server that keeps everything in a folder, which may hold the data of an earlier one."""
    program = VERSITYGW.folder() / "versitygw"
    bucket = folder / _BUCKET
    bucket.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = {"ROOT_ACCESS_KEY": "the-access-key", "ROOT_SECRET_KEY": "the-secret-key", "PATH": os.defpath}
    command = [str(program), "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive", "posix", str(folder)]
    with _running(command, env, port):
        yield RunningObjectStore(f"s3://{_BUCKET}", s3_env(port), port, bucket)


def s3_env(port: int) -> dict[str, str]:
    """The variables that lead to an S3 server on this machine."""
    return {
        "AWS_ACCESS_KEY_ID": "the-access-key",
        "AWS_SECRET_ACCESS_KEY": "the-secret-key",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def running_azure() -> Iterator[RunningObjectStore]:
    """Run Microsoft's emulator of Azure, which keeps everything in memory."""
    program = AZURITE.folder() / "node_modules/.bin/azurite-blob"
    port = free_port()
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    with _running(command, dict(os.environ), port):
        _make_container(port)
        env = {
            "AZURE_STORAGE_ACCOUNT_NAME": _AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}",
            "AWS_ALLOW_HTTP": "true",
        }
        yield RunningObjectStore(f"az://{_BUCKET}", env, port)


def _make_container(port: int) -> None:
    """Nothing that we depend on makes containers; so in Azure's own protocol."""
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:2021-12-02"
    text = f"PUT{chr(10) * 12}{headers}\n/{_AZURE_ACCOUNT}/{_AZURE_ACCOUNT}/{_BUCKET}\nrestype:container"
    signature = hmac.digest(base64.b64decode(_AZURE_KEY), text.encode(), hashlib.sha256)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}/{_BUCKET}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": "2021-12-02",
            "Authorization": f"SharedKey {_AZURE_ACCOUNT}:{base64.b64encode(signature).decode()}",
        },
    )
    with urllib.request.urlopen(request, timeout=_START_TIMEOUT):
        pass


@contextmanager
def _running(command: Sequence[str], env: dict[str, str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or listens(port), _START_TIMEOUT, "the object store to serve")
        assert process.poll() is None, "the object store ended"
        yield
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
