"""What `pixyproxy serve` runs: RPC workers and generation workers, each a process, or all in one process.

Generation workers have processes of their own because decoding and storing images takes CPU time, which would delay the
calls of the same process.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pixyproxy.bootstrap import (
    Base,
    Shared,
    build,
    build_exposition,
    build_generation_worker,
    build_users,
    open_base,
    open_current_database,
)
from pixyproxy.observability.exposition import MetricsExposition
from pixyproxy.resource.connections import ConnectionLimits
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.serving.cores import can_choose_cores, choose_cores, give_way, stay_on, usable_cores
from pixyproxy.serving.descriptors import limit_connections
from pixyproxy.serving.logs import flush_output, set_up_logging
from pixyproxy.serving.port import PortClaim
from pixyproxy.serving.server import Server
from pixyproxy.serving.signals import END_SIGNALS, receiving_signals
from pixyproxy.serving.supervisor import Lifeline, ProcessSpec, Supervisor
from pixyproxy.settings import Settings

_logger = logging.getLogger(__name__)

GENERATION_WORKER_NAME = "pixyproxy-gen"  # at most 15 characters
_COMMAND_NAME = Path("/proc/self/comm")

MakeFirstUser = Callable[[UserServiceInterface], None]
Announce = Callable[[str], None]


@dataclass(frozen=True)
class EndLimits:
    """The seconds after which a process that does not end by itself is ended, whatever hangs in it.

    Attributes:
        close: for closing its parts, beside what the settings give to calls.
        store: for storing an image; a store that is unavailable is waited for 10 minutes.
    """

    close: float = 60.0
    store: float = 600.0

    def drain(self, settings: Settings) -> float:
        """Return the seconds for calls."""
        return settings.drain_delay + settings.drain_timeout + self.close

    def generation(self, settings: Settings) -> float:
        """Return the seconds for a generation that was submitted."""
        return 2 * settings.provider_timeout + self.store + self.close


_LIMITS = EndLimits()


def serve_alone(
    settings: Settings, make_first_user: MakeFirstUser, announce: Announce, limits: EndLimits = _LIMITS
) -> None:
    """Serve from this process, on one core, until SIGTERM or SIGINT, then drain. A second signal ends it at once.

    Args:
        settings: all settings.
        make_first_user: is called if the database is embedded, once the port is bound.
        announce: is called with the address once it serves.
        limits: how long the end may take.

    Raises:
        PixyProxyException: it cannot start.
    """
    if can_choose_cores():
        stay_on(choose_cores(1, usable_cores())[0])
    connections = limit_connections(settings)
    set_up_logging(settings.log_level, settings.log_format, gathers=True)
    shared = Shared.of(settings)
    with (
        build_exposition(settings) as exposition,
        open_base(settings) as base,
        _generating_beside(settings, shared, base),
        build(settings, shared, base) as application,
    ):
        if exposition is not None:
            exposition.start()
        server = Server(application, settings, connections)
        if settings.sqlite_path is not None:
            make_first_user(application.users)
        with receiving_signals(*END_SIGNALS) as received:
            server.start()
            announce(server.address)
            received.recv(1)
        _logger.info("Draining: new calls are refused, running calls may finish.")
        _end_within(limits.drain(settings) + limits.generation(settings))
        all_ended = server.stop()
    _logger.info("Stopped.")
    if not all_ended:
        # The interpreter would wait for the threads of calls that hang.
        flush_output()
        os._exit(0)


@contextmanager
def _generating_beside(settings: Settings, shared: Shared, base: Base) -> Iterator[None]:
    """Run all generation workers in threads of this process; at the end, let submitted generations finish."""
    with ExitStack() as stack:
        for number in range(settings.generation_workers):
            worker = stack.enter_context(build_generation_worker(settings, shared, base, number=number))
            thread = threading.Thread(target=worker.run, name="generation-worker", daemon=True)
            thread.start()
            stack.callback(thread.join)
        stack.callback(shared.recorded.close_sender)
        yield


def serve_together(
    settings: Settings, count: int, make_first_user: MakeFirstUser, announce: Announce, limits: EndLimits = _LIMITS
) -> bool:
    """Serve from ``count`` RPC workers, each on a core of its own, until SIGTERM or SIGINT; as ``serve_alone``.

    Returns:
        Whether all processes ended with status 0.
    """
    shared = Shared.of(settings, rpc_workers=count)
    cores = choose_cores(count, usable_cores())
    connections = limit_connections(settings, count)
    with closing(PortClaim(settings)) as claim, build_exposition(settings) as exposition:
        inherited = _Inherited(settings, shared, claim, exposition, limits)

        def all_serve() -> None:
            claim.close()
            if settings.sqlite_path is not None:
                with open_current_database(settings) as database:
                    make_first_user(build_users(settings, database))
            announce(claim.address)

        with open_current_database(settings):
            pass  # The tables are upgraded, or found too old, once and not by each process.
        specs = [
            *(
                ProcessSpec(f"Generation worker {number}", partial(_generate, inherited, number), on_end=lambda: None)
                for number in range(settings.generation_workers)
            ),
            *(
                ProcessSpec(
                    f"RPC worker {number}",
                    partial(_serve, inherited, connections, number, core),
                    partial(shared.clear, number),
                )
                for number, core in enumerate(cores)
            ),
        ]
        # Forked processes share the memory of what their garbage collection leaves alone.
        gc.collect()
        gc.freeze()
        ended_well = Supervisor(specs, on_ending=shared.recorded.close_sender).run(all_serve)
    _logger.info("Stopped.")
    return ended_well


@dataclass(frozen=True)
class _Inherited:
    """What the processes of a server inherit from the supervisor."""

    settings: Settings
    shared: Shared
    claim: PortClaim
    exposition: MetricsExposition | None
    limits: EndLimits


def _serve(inherited: _Inherited, connections: ConnectionLimits, number: int, core: int, lifeline: Lifeline) -> None:
    """Run an RPC worker on a core of its own."""
    settings, exposition = inherited.settings, inherited.exposition
    inherited.claim.close()
    stay_on(core)
    set_up_logging(settings.log_level, settings.log_format, gathers=True)
    with (
        receiving_signals(*END_SIGNALS) as received,
        open_base(settings) as base,
        build(settings, inherited.shared, base, rpc_worker=number) as application,
    ):
        if exposition is not None and number == 0:
            exposition.start()
        server = Server(application, settings, connections, inherited.claim.port)
        server.start()
        lifeline.report_serving()
        select.select([received.fileno(), lifeline.end], [], [])
        _end_within(inherited.limits.drain(settings))
        server.stop()


def _generate(inherited: _Inherited, number: int, lifeline: Lifeline) -> None:
    """Run a generation worker.

    It ends after the RPC workers, whose calls wait for it, even if the signal is sent to all processes.
    """
    settings, exposition = inherited.settings, inherited.exposition
    for signal_number in END_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    inherited.claim.close()
    if exposition is not None:
        exposition.leave()
    inherited.shared.recorded.close_sender()
    give_way()
    with suppress(OSError):  # Nothing depends on it.
        _COMMAND_NAME.write_text(GENERATION_WORKER_NAME, encoding="ascii")
    set_up_logging(settings.log_level, settings.log_format, gathers=True)
    with (
        open_base(settings) as base,
        build_generation_worker(settings, inherited.shared, base, number=number) as worker,
    ):
        # Garbage collection would spend 5% of the CPU time on the provider's package.
        gc.freeze()
        lifeline.report_serving()
        worker.run(on_ending=partial(_end_within, inherited.limits.generation(settings)))


def _end_within(seconds: float) -> None:
    """End this process after ``seconds``, if it has not ended by then, with the traceback of each thread."""
    faulthandler.dump_traceback_later(seconds, exit=True)
