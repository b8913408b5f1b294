"""What `pixyproxy serve` runs: one server in this process, or one in each of several workers."""

from __future__ import annotations

import gc
import logging
import select
from collections.abc import Callable
from contextlib import closing

from pixyproxy.bootstrap import Limits, build, build_exposition, build_users, load_ahead, open_current_database
from pixyproxy.cores import can_choose_cores, choose_cores, stay_on
from pixyproxy.logs import set_up_logging
from pixyproxy.port import PortClaim
from pixyproxy.server import Server
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.settings import Settings
from pixyproxy.signals import END_SIGNALS, heard
from pixyproxy.supervisor import Line, Supervisor

_logger = logging.getLogger(__name__)

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
    set_up_logging(settings.log_level, settings.log_format, gathers=True)
    with build_exposition(settings) as exposition, build(settings, Limits.of(settings)) as application:
        if exposition is not None:
            exposition.start()
        server = Server(application, settings)
        if settings.sqlite_path is not None:
            make_first_user(application.users)
        with heard(*END_SIGNALS) as told:
            server.start()
            announce(server.address)
            told.recv(1)
        _logger.info("Draining: no new calls are taken, running ones may finish.")
        server.stop()
    _logger.info("Stopped.")


def serve_together(settings: Settings, count: int, make_first_user: MakeFirstUser, announce: Announce) -> bool:
    """Serve from several workers, each on a core of its own, until SIGTERM or SIGINT; as ``serve_alone``.

    Returns:
        Whether all workers ended in good order.
    """
    limits = Limits.of(settings, workers=count)
    cores = choose_cores(count)
    with closing(PortClaim(settings)) as claim, build_exposition(settings) as exposition:

        def work(number: int, line: Line) -> None:
            claim.close()
            stay_on(cores[number])
            set_up_logging(settings.log_level, settings.log_format, gathers=True)
            with heard(*END_SIGNALS) as told, build(settings, limits, worker=number) as application:
                if exposition is not None and number == 0:
                    exposition.start()
                server = Server(application, settings, shared_port=claim.port)
                server.start()
                line.say_serving()
                select.select([told.fileno(), line.end], [], [])
                server.stop()

        def all_serve() -> None:
            claim.close()
            if settings.sqlite_path is not None:
                with open_current_database(settings) as database:
                    make_first_user(build_users(settings, database))
            announce(claim.address)

        with open_current_database(settings):
            pass  # Its tables are brought to today's form once, or it is said once that they are not in it.
        load_ahead(settings)
        # What is there now is left alone by the workers' garbage collection, and so stays shared between them.
        gc.collect()
        gc.freeze()
        ended_well = Supervisor(count, work, on_end=limits.clear).run(all_serve)
    _logger.info("Stopped.")
    return ended_well
