"""How a server is: what it holds, whether it serves, and what it has logged."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from grpc_health.v1 import health_pb2

from tests.fuzz.answers import UnexpectedAnswerError
from tests.fuzz.world import PROMPTS, World
from tests.support.rpc import health_stub
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_MEGABYTE = 1024 * 1024
_SERVES_WITHIN_SECONDS = 10.0
_SETTLES_WITHIN_SECONDS = 30.0
# A pool never gives up a thread that it has made, and each costs some memory; so both have an upper end, and no more.
_MORE_FDS = 16
_MOST_THREADS = 700
_MOST_MORE_BYTES = 128 * _MEGABYTE
_BAD_LINE = re.compile(r"^(Traceback .*|\S+ \S+ (?:ERROR|CRITICAL) .*)$", re.MULTILINE)
# Of what everybody sends, what no line may hold: credentials and prompts.
_NEVER_LOGGED = ("Basic ", *PROMPTS)


@dataclass(frozen=True)
class Vitals:
    """What a server holds."""

    rss: int
    fds: int
    threads: int

    @classmethod
    def of(cls, server: RunningServer) -> Vitals:
        """Measure a server."""
        process = Path(f"/proc/{server.process.pid}")
        return cls(server.rss, len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())))

    def __str__(self) -> str:
        return f"{self.rss / _MEGABYTE:.0f} MiB, {self.fds} fds, {self.threads} threads"


@dataclass
class Watch:
    """Watches a server while it is fuzzed."""

    world: World
    _read: int = field(default=0)

    def check(self) -> None:
        """Check that the server serves, and has logged no error since the last time.

        Raises:
            UnexpectedAnswerError: it does not, or has.
        """
        server = self.world.server
        if server.process.poll() is not None:
            raise UnexpectedAnswerError(f"the server has died: {server.log[-4000:]}")
        # On a connection of its own, as anybody else would come.
        with server.new_channel() as channel:
            health = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SERVES_WITHIN_SECONDS)
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            raise UnexpectedAnswerError(f"the health service says {health}")
        guid = next(iter(self.world.images))
        if self.world.get(guid) != self.world.images[guid]:
            raise UnexpectedAnswerError(f"the image {guid} has changed")
        self._check_log()

    def settle(self, before: Vitals) -> Vitals:
        """Wait until nothing is left of what was sent, and return what the server holds then.

        Raises:
            TimeoutError: file descriptors or threads are left.
            UnexpectedAnswerError: too much memory is.
        """

        def settled() -> Vitals | None:
            now = Vitals.of(self.world.server)
            return now if now.fds <= before.fds + _MORE_FDS and now.threads <= _MOST_THREADS else None

        after = wait_until(settled, _SETTLES_WITHIN_SECONDS, f"the server to settle to about {before}")
        if after.rss > before.rss + _MOST_MORE_BYTES:
            raise UnexpectedAnswerError(f"the server grew from {before} to {after}")
        return after

    def _check_log(self) -> None:
        """Look through what was logged since the last time."""
        with self._log_path.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        text = new.decode(errors="replace")
        said = [secret for secret in _NEVER_LOGGED if secret in text]
        if said:
            raise UnexpectedAnswerError(f"in the log: {said}")
        found = _BAD_LINE.search(text)
        if found:
            raise UnexpectedAnswerError(
                f"an error in the log: {text[max(0, found.start() - 500) : found.end() + 3000]}"
            )

    @property
    def _log_path(self) -> Path:
        (path,) = self.world.server.folder.glob("stderr-*")
        return path
