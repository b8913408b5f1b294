"""The load: a small Go program that calls over many connections, so light that it never is what bounds a figure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from benchmarks.processes import ROOT, Cores, on_cores

_SOURCE = ROOT / "benchmarks" / "go"
_SERVICE = "/pixyproxy.v1.ImageService/"
_PROTO = "pixyproxy/v1/image_service.proto"
_MODULE = "pixyproxy/benchmarks"
_PLUGINS = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")


@dataclass(frozen=True)
class Load:
    """What calls gave.

    Attributes:
        rate: answered calls a second.
        refused: the share of all calls that were refused because the server was too busy.
        bytes_rate: bytes of answers a second.
        p50_ms: half of the calls took no longer.
        p99_ms: 99 of 100 calls took no longer.
        first_byte_ms: half of the calls saw the first byte of the answer no later.
        client_cpu: the share of a core that the load itself took.
    """

    rate: float
    refused: float
    bytes_rate: float
    p50_ms: float
    p99_ms: float
    first_byte_ms: float
    client_cpu: float


@dataclass(frozen=True)
class GoPrograms:
    """The programs in Go: the load, and the peer."""

    load: Path
    peer: Path


def build_go(folder: Path) -> GoPrograms:
    """Build the programs in Go; what they need is fetched and remembered by Go itself."""
    _go("build", "-o", f"{folder}/", *_PLUGINS)
    (_SOURCE / "pb").mkdir(exist_ok=True)
    mapping = f"module={_MODULE},M{_PROTO}={_MODULE}/pb"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", _PROTO),
            *(f"--go_out={_SOURCE}", f"--go_opt={mapping}", f"--go-grpc_out={_SOURCE}", f"--go-grpc_opt={mapping}"),
        ],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        check=True,
    )
    _go("build", "-o", f"{folder}/", "./load", "./peer")
    return GoPrograms(folder / "load", folder / "peer")


def has_go() -> bool:
    """Tell whether there is Go to build with."""
    return shutil.which("go") is not None


class Loader:
    """Puts load on servers as one signed-in user, from some cores."""

    def __init__(self, program: Path, authorization: str, folder: Path) -> None:
        self._program = program
        self._authorization = authorization
        self._requests = folder / "requests"

    def grpc(self, address: str, method: str, requests: Sequence[Message], cores: Cores, **options: float) -> Load:
        """Call a gRPC method with one request after the other on each connection.

        Args:
            address: host:port.
            method: its short name.
            requests: the messages, gone through again and again.
            cores: where the load runs.
            options: connections, seconds, warm_up, and rate, in calls a second.

        Raises:
            RuntimeError: calls failed or were refused.
        """
        load = self.crowd(address, method, requests, cores, **options)
        if load.refused:
            raise RuntimeError(f"{load.refused:.1%} of the calls were refused.")
        return load

    def crowd(self, address: str, method: str, requests: Sequence[Message], cores: Cores, **options: float) -> Load:
        """As ``grpc``, of a server that may be too busy for some calls; these are repeated at once."""
        return self._measure(["-method", _SERVICE + method], _hex(requests), address, cores, options)

    def http(self, address: str, paths: Sequence[str], cores: Cores, **options: float) -> Load:
        """Get one path after the other; as ``grpc``."""
        return self._measure([], paths, address, cores, options)

    @contextlib.contextmanager
    def stalled(self, address: str, requests: Sequence[Message], cores: Cores, count: int) -> Iterator[int]:
        """Hold streams of which only the first bytes are read, through HTTP/2's smallest usual window of 64 KiB.

        Gives how many of them began.
        """
        command = self._command(["-method", f"{_SERVICE}GetImageContent", "-stall"], _hex(requests), address, cores)
        with subprocess.Popen(
            [*command, f"-connections={count}"],
            env=self._environment(cores),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield int(process.stdout.readline())
            process.stdin.close()

    def _measure(
        self, arguments: list[str], lines: Sequence[str], address: str, cores: Cores, options: dict[str, float]
    ) -> Load:
        command = self._command(arguments, lines, address, cores)
        command += [f"-{name.replace('_', '-')}={value:g}" for name, value in options.items()]
        done = subprocess.run(command, env=self._environment(cores), check=True, stdout=subprocess.PIPE)
        told = json.loads(done.stdout)
        if told["errors"] or not told["calls"]:
            raise RuntimeError(f"{told['errors']} calls failed beside {told['calls']}: {told['first_error']}")
        return Load(
            rate=told["calls"] / told["seconds"],
            refused=told["refused"] / (told["calls"] + told["refused"]),
            bytes_rate=told["bytes"] / told["seconds"],
            p50_ms=told["p50_ms"],
            p99_ms=told["p99_ms"],
            first_byte_ms=told["first_byte_p50_ms"],
            client_cpu=told["cpu_seconds"] / told["seconds"],
        )

    def _command(self, arguments: list[str], lines: Sequence[str], address: str, cores: Cores) -> list[str]:
        self._requests.write_text("\n".join(lines), encoding="ascii")
        fixed = ["-address", address, "-requests", str(self._requests)]
        return [*on_cores(cores), str(self._program), *fixed, *arguments]

    def _environment(self, cores: Cores) -> dict[str, str]:
        return {"LOAD_AUTHORIZATION": self._authorization, "GOMAXPROCS": str(len(cores))}


def _hex(requests: Sequence[Message]) -> list[str]:
    return [request.SerializeToString().hex() for request in requests]


def _go(*arguments: str) -> None:
    subprocess.run(["go", *arguments], cwd=_SOURCE, check=True)
