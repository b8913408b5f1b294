"""Plans the placeholders of images that have none, such as those of earlier releases, in the order of their ids."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.renditions import PLACEHOLDER, RenditionRepository
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.transactions import in_transaction

_POSITION = "placeholder_position"
_IMAGES_A_STEP = 100
# While there is nothing to plan, or enough is planned.
_INTERVAL_SECONDS = 5.0
# New images have their placeholders planned when they are committed, except by servers of earlier releases.
_MIN_AGE = timedelta(minutes=1)


def placeholder_planner(database: Database) -> PeriodicTask:
    """Return the task that plans placeholders in the background. Any number of servers may run it at the same time."""

    def plan() -> float:
        return 0.0 if take_step(database) else _INTERVAL_SECONDS

    return PeriodicTask("placeholders", plan, retry_interval=_INTERVAL_SECONDS)


def take_step(database: Database, min_age: timedelta = _MIN_AGE) -> bool:
    """Plan the placeholders of the next images, unless many renditions are planned; return whether there were any.

    Which images were looked at is stored for all servers.
    """
    with database.reading() as context:
        # Before the count: what another server plans from here on, `replace` notices.
        stored = ServerValueRepository(context).get(_POSITION)
        if RenditionRepository(context).count_planned(_IMAGES_A_STEP) >= _IMAGES_A_STEP:
            return False
        position = int(stored or 0)
        guids, end = RenditionRepository(context).get_without_placeholder(
            _IMAGES_A_STEP, after=position, before=datetime.now(UTC) - min_age
        )
    if end == position:
        return False

    def plan(context: DatabaseContext) -> None:
        values = ServerValueRepository(context)
        if stored is None:
            values.insert(_POSITION, str(end))
        elif not values.replace(_POSITION, stored, str(end)):
            return  # Another server was faster.
        RenditionRepository(context).plan(guids, PLACEHOLDER)

    with suppress(ConstraintViolationError):  # As well.
        in_transaction(database, plan)
    return True
