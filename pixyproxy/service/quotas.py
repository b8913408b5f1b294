"""Limits of what authors spend: checked when a request is recorded, and held when its generation is claimed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta

from pixyproxy.core.exceptions import PriceUnknownError, QuotaExhaustedError
from pixyproxy.core.models import (
    Caller,
    GenerationDefaults,
    GenerationOptions,
    ImageCreation,
    Quota,
    QuotaLimits,
    QuotaName,
)
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import QueuedGeneration
from pixyproxy.data.repositories.quotas import QuotaRepository, QuotaUse
from pixyproxy.generation.price_list import PriceList

_NANO = 10**9


class QuotaReservedError(Exception):
    """Submitted generations of the author may use what is left of a quota."""


class Quotas:
    """The quotas of all authors."""

    def __init__(self, database: Database, prices: PriceList, options: GenerationDefaults, limits: QuotaLimits) -> None:
        """Take the defaults for options that a request leaves open, and for users without limits of their own."""
        self._database = database
        self._prices = prices
        self._options = options
        self._defaults = limits

    def require_left(self, creation: ImageCreation, author: Caller) -> None:
        """Check that quotas are not used up for a request.

        Raises:
            QuotaExhaustedError: one is, whatever the submitted generations are going to cost.
            PriceUnknownError: the costs of the author are limited, and that of the request is unknown.
        """
        with self._database.reading() as context:
            quotas = QuotaRepository(context)
            limits = quotas.get(author.user_id).over(self._defaults)
            if limits.has_any:
                now = datetime.now(UTC)
                self._require_left(creation, author, limits, quotas.get_use(author.user_id, now), now)

    def reserve(self, context: DatabaseContext, queued: QueuedGeneration) -> int | None:
        """Check, in the transaction that claims a generation, that no quota is exceeded whatever it costs.

        It must come first in the transaction.

        Returns:
            What the generation costs at most, in billionths of a US dollar; None if that is unknown.

        Raises:
            QuotaExhaustedError: as ``require_left``.
            PriceUnknownError: as ``require_left``.
            QuotaReservedError: a quota may be exceeded, or not, depending on the submitted generations.
            ConstraintViolationError: another transaction was faster.
        """
        creation, author = queued.creation, queued.author
        limits = self._defaults if queued.limits is None else queued.limits.over(self._defaults)
        if not limits.has_any:
            return self._most_of(creation)
        quotas, now = QuotaRepository(context), datetime.now(UTC)
        if queued.limits is None:
            quotas.insert(author.user_id)
        else:
            limits = quotas.lock(author.user_id).over(self._defaults)
        use = quotas.get_use(author.user_id, now)
        cost = self._require_left(creation, author, limits, use, now)
        for limit, needed in (
            (limits.generations_at_once, use.submitted + 1),
            (limits.images_per_day, use.images + use.submitted + 1),
            (limits.nano_usd_per_day, use.nano_usd + use.reserved_nano_usd + (cost or 0)),
        ):
            if limit is not None and needed > limit:
                raise QuotaReservedError
        return cost

    def get(self, author_id: int) -> list[Quota]:
        """Return what is limited for an author, and what is used of it."""
        now = datetime.now(UTC)
        with self._database.reading() as context:
            quotas = QuotaRepository(context)
            limits = quotas.get(author_id).over(self._defaults)
            return [*_quotas(limits, quotas.get_use(author_id, now), now)]

    def _require_left(
        self, creation: ImageCreation, author: Caller, limits: QuotaLimits, use: QuotaUse, now: datetime
    ) -> int | None:
        """Check that quotas are not used up; return what a request costs at most."""
        until_reset = (_end_of_day(now) - now).total_seconds()
        if limits.images_per_day is not None and use.images >= limits.images_per_day:
            raise QuotaExhaustedError(
                f"The quota of {limits.images_per_day:,} images per day is used up.",
                quota=QuotaName.IMAGES_PER_DAY.value,
                author=author.username,
                retry_after=until_reset if limits.images_per_day else None,
            )
        cost = self._most_of(creation)
        if limits.nano_usd_per_day is None:
            return cost
        if cost is None:
            raise PriceUnknownError(creation.options.model or self._options.model)
        limit, left = limits.nano_usd_per_day, max(0, limits.nano_usd_per_day - use.nano_usd)
        if cost > left:
            is_possible = cost <= limit
            than = f"the {_usd(left)} that are left of" if is_possible else "the whole of"
            raise QuotaExhaustedError(
                f"This generation may cost up to {_usd(cost)}, more than {than} the quota of {_usd(limit)} per day. "
                "A lower quality or a smaller size costs less.",
                quota=QuotaName.USD_PER_DAY.value,
                author=author.username,
                retry_after=until_reset if is_possible else None,
            )
        return cost

    def _most_of(self, creation: ImageCreation) -> int | None:
        options = GenerationOptions.model_construct(**self._options.under(creation.options))
        inputs = len(creation.inputs) + (creation.mask is not None)
        prices = self._prices.prices_of(options.model or "")
        return None if prices is None else prices.most_nano_usd(creation.detail.prompt, options, inputs)


def _quotas(limits: QuotaLimits, use: QuotaUse, now: datetime) -> Iterator[Quota]:
    resets_at = _end_of_day(now)
    for name, limit, used, reserved in (
        (QuotaName.USD_PER_DAY, limits.nano_usd_per_day, use.nano_usd, use.reserved_nano_usd),
        (QuotaName.IMAGES_PER_DAY, limits.images_per_day, use.images, use.submitted),
    ):
        if limit is not None:
            yield Quota(name=name, limit=limit, used=used, reserved=reserved, resets_at=resets_at)
    if limits.generations_at_once is not None:
        yield Quota(name=QuotaName.GENERATIONS_AT_ONCE, limit=limits.generations_at_once, used=use.submitted)


def _end_of_day(now: datetime) -> datetime:
    return datetime.combine(now.date() + timedelta(days=1), time.min, now.tzinfo)


def _usd(nano_usd: int) -> str:
    return f"${nano_usd / _NANO:,.4f}"
