"""The same select by the same driver from eight threads, and nothing else; prints how many a second there were."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time

import _mysql_connector  # noqa: F401  before anything that loads OpenSSL
import mysql.connector

from benchmarks.dataset import guids
from benchmarks.peers.fastapi_service import IMAGE_QUERY
from pixyproxy.settings import load_settings

_THREADS = 8


def main() -> None:
    """Select for as many seconds as the first argument says."""
    address = load_settings().mysql_address
    (host,) = address.hosts
    seconds = float(sys.argv[1])
    wanted = guids()
    connected = threading.Barrier(_THREADS)
    counts = itertools.count()

    def select(first: int) -> None:
        connection = mysql.connector.connect(
            host=host.name,
            port=host.port,
            user=address.user,
            password=address.password.get_secret_value(),
            database=address.database,
            autocommit=True,
        )
        rest = itertools.islice(itertools.cycle(wanted), first, None)
        connected.wait()
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            with connection.cursor() as cursor:
                cursor.execute(IMAGE_QUERY, (next(rest), 1))
                assert cursor.fetchone() is not None
            next(counts)

    threads = [threading.Thread(target=select, args=(200 * number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(next(counts) / seconds, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
