"""Takes slots from a process of its own, from when it is told to until it has to wait; prints how many it had."""

from __future__ import annotations

import sys
from contextlib import closing, suppress

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.data.database import Database
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.rate_limiter import RateLimiter
from tests.contract.databases import open_database


def take(database: Database, limiter: RateLimiter) -> float:
    """Take a slot, as often as others are faster."""
    while True:
        with suppress(ConstraintViolationError):
            return in_transaction(database, limiter.take)


def main() -> None:
    with closing(open_database(sys.argv[1])) as database:
        limiter = RateLimiter(database, int(sys.argv[2]))
        limiter.wait_for(0)
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()
        taken = 0
        while take(database, limiter) == 0:
            taken += 1
        print(taken)  # noqa: T201


if __name__ == "__main__":
    main()
