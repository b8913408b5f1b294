"""What all measurements share: a database with images, who asks for them, and where everything runs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from pixyproxy_pb.v1 import image_service_pb2 as pb

from benchmarks import dataset
from benchmarks.load import GoPrograms, Loader, build_go
from benchmarks.processes import Cores, pin
from tests.support.database_servers import DatabaseKind, DatabaseServer, fresh_database, launch_server
from tests.support.servers import Login


@dataclass(frozen=True)
class Site:
    """A place to measure at.

    Attributes:
        folder: for everything that is written.
        settings: PixyProxy's environment variables for the database and the store.
        login: who asks, the author of all images.
        loader: makes the calls.
        programs: the programs in Go.
        database: the database server.
        seconds: how long one measurement of a rate takes.
        rounds: how often each is repeated.
        first: the core of the server that is measured, where the rest runs on another one.
        second: that other core.
    """

    folder: Path
    settings: dict[str, str]
    login: Login
    loader: Loader
    programs: GoPrograms
    database: DatabaseServer
    seconds: float
    rounds: int
    first: Cores
    second: Cores

    @property
    def both(self) -> Cores:
        """Both cores."""
        return self.first | self.second

    @property
    def image_requests(self) -> list[pb.GetImageRequest]:
        """A request for each image."""
        return [pb.GetImageRequest(guid=guid) for guid in dataset.guids()]

    @property
    def content_request(self) -> pb.GetImageContentRequest:
        """The request for the bytes that there are."""
        return pb.GetImageContentRequest(guid=dataset.guids()[0])

    def put_database_on(self, cores: Cores) -> None:
        """Move the database server."""
        for process in psutil.Process().children(recursive=True):
            if process.name() == "mysqld":
                pin(process, cores)


@contextlib.contextmanager
def open_site(*, seconds: float, rounds: int) -> Iterator[Site]:
    """Make a site on the first two cores that this process may use.

    Raises:
        RuntimeError: there are no two.
        NoServerError: there is no MySQL to be had.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RuntimeError("It takes two cores to measure on.")
    first, second = (frozenset({core}) for core in cores)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixyproxy-bench-")))
        programs = build_go(folder)
        os.sched_setaffinity(0, first | second)
        running, database = launch_server(DatabaseKind.MYSQL)
        stack.callback(running.close)
        url = stack.enter_context(fresh_database(database))
        settings = {"PIXYPROXY_DATABASE_URL": url, "PIXYPROXY_IMAGE_STORE": str(folder / "images")}
        login = dataset.prepare(settings)
        loader = Loader(programs.load, login.metadata[0][1], folder)
        yield Site(folder, settings, login, loader, programs, database, seconds, rounds, first, second)
