"""What `pixyproxy serve` runs: RPC workers and generation workers, each a process, or all in one process.

Generation workers have processes of their own because decoding and storing what the provider sends is work for the CPU,
which calls beside it in the same process would feel.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
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
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.serving.cores import can_choose_cores, choose_cores, give_way, stay_on
from pixyproxy.serving.descriptors import limit_connections
from pixyproxy.serving.logs import set_up_logging
from pixyproxy.serving.port import PortClaim
from pixyproxy.serving.server import Server
from pixyproxy.serving.signals import END_SIGNALS, heard
from pixyproxy.serving.supervisor import Lifeline, ProcessSpec, Supervisor
from pixyproxy.settings import Settings

_logger = logging.getLogger(__name__)

GENERATION_WORKER_NAME = "pixyproxy-gen"  # at most 15 characters
_COMMAND_NAME = Path("/proc/self/comm")
# Once a process is told to end: what closing its parts may take, beside the time that the settings give to calls.
_CLOSE_SECONDS = 60.0
# How long a picture may take to be stored: a store that is away is waited for 10 minutes.
_STORE_SECONDS = 600.0

MakeFirstUser = Callable[[UserServiceInterface], None]
Announce = Callable[[str], None]


def serve_alone(settings: Settings, make_first_user: MakeFirstUser, announce: Announce) -> None:
    """Serve from this process, on one core, until SIGTERM or SIGINT, then drain. A second signal ends it at once.

    Args:
        settings: all settings.
        make_first_user: is called with an embedded database, when the port is had.
        announce: is told the address when it serves.

    Raises:
        PixyProxyException: it cannot begin to serve.
    """
    if can_choose_cores():
        stay_on(choose_cores(1)[0])
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
        with heard(*END_SIGNALS) as told:
            server.start()
            announce(server.address)
            told.recv(1)
        _logger.info("Draining: no new calls are taken, running ones may finish.")
        _end_within(_drain_seconds(settings) + _generation_seconds(settings))
        server.stop()
    _logger.info("Stopped.")


@contextmanager
def _generating_beside(settings: Settings, shared: Shared, base: Base) -> Iterator[None]:
    """Run all generation workers in threads of this process; at the end, finish what they have submitted."""
    with ExitStack() as stack:
        for number in range(settings.generation_workers):
            worker = stack.enter_context(build_generation_worker(settings, shared, base, number=number))
            thread = threading.Thread(target=worker.run, name="generation-worker", daemon=True)
            thread.start()
            stack.callback(thread.join)
        stack.callback(shared.recorded.close_sender)
        yield


def serve_together(settings: Settings, count: int, make_first_user: MakeFirstUser, announce: Announce) -> bool:
    """Serve from several workers, each on a core of its own, until SIGTERM or SIGINT; as ``serve_alone``.

    Returns:
        Whether all of them ended in good order.
    """
    shared = Shared.of(settings, rpc_workers=count)
    cores = choose_cores(count)
    connections = limit_connections(settings, count)
    with closing(PortClaim(settings)) as claim, build_exposition(settings) as exposition:

        def serve(number: int, lifeline: Lifeline) -> None:
            claim.close()
            stay_on(cores[number])
            set_up_logging(settings.log_level, settings.log_format, gathers=True)
            with (
                heard(*END_SIGNALS) as told,
                open_base(settings) as base,
                build(settings, shared, base, rpc_worker=number) as application,
            ):
                if exposition is not None and number == 0:
                    exposition.start()
                server = Server(application, settings, connections, claim.port)
                server.start()
                lifeline.say_serving()
                select.select([told.fileno(), lifeline.end], [], [])
                _end_within(_drain_seconds(settings))
                server.stop()

        def generate(number: int, lifeline: Lifeline) -> None:
            # It ends after the RPC workers, whose calls wait for it, whoever was sent the signal.
            for signal_number in END_SIGNALS:
                signal.signal(signal_number, signal.SIG_IGN)
            claim.close()
            shared.recorded.close_sender()
            give_way()
            with suppress(OSError):  # Nothing depends on it.
                _COMMAND_NAME.write_text(GENERATION_WORKER_NAME, encoding="ascii")
            set_up_logging(settings.log_level, settings.log_format, gathers=True)
            with (
                open_base(settings) as base,
                build_generation_worker(settings, shared, base, number=number) as worker,
            ):
                # The provider's package is as large as all else: to look through it again and again is 5% of the work.
                gc.freeze()
                lifeline.say_serving()
                worker.run(on_ending=partial(_end_within, _generation_seconds(settings)))

        def all_serve() -> None:
            claim.close()
            if settings.sqlite_path is not None:
                with open_current_database(settings) as database:
                    make_first_user(build_users(settings, database))
            announce(claim.address)

        with open_current_database(settings):
            pass  # Its tables are brought to today's form once, or it is said once that they are not in it.
        specs = [
            *(
                ProcessSpec(f"Generation worker {number}", partial(generate, number), on_end=lambda: None)
                for number in range(settings.generation_workers)
            ),
            *(
                ProcessSpec(f"RPC worker {number}", partial(serve, number), partial(shared.clear, number))
                for number in range(count)
            ),
        ]
        # What is there now is left alone by the others' garbage collection, and so stays shared between them.
        gc.collect()
        gc.freeze()
        ended_well = Supervisor(specs, on_ending=shared.recorded.close_sender).run(all_serve)
    _logger.info("Stopped.")
    return ended_well


def _drain_seconds(settings: Settings) -> float:
    return settings.drain_delay + settings.drain_timeout + _CLOSE_SECONDS


def _generation_seconds(settings: Settings) -> float:
    """Return how long a generation that was sent may still take, with some room."""
    return 2 * settings.provider_timeout + _STORE_SECONDS + _CLOSE_SECONDS


def _end_within(seconds: float) -> None:
    """End this process after so many seconds, whatever hangs in it; standard error then shows where each thread is."""
    faulthandler.dump_traceback_later(seconds, exit=True)
