"""One server's parts of creating images, put together as the product does it, with short intervals."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

from pixyproxy.core.fields import new_guid
from pixyproxy.core.local_signal import LocalSignal
from pixyproxy.core.models import Cost, GenerationDefaults, ImageDetail, PartialImage, QuotaLimits, Usage
from pixyproxy.data.database import Database
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.generation.circuit_breaker import CircuitBreaker, SharedCircuits
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, OnPartial, ignore_partial
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.generation.price_list import ModelPrices, PriceList
from pixyproxy.generation.retry import delay_before_retry
from pixyproxy.service.creation.changes import GenerationChanges
from pixyproxy.service.creation.claims import GenerationClaims
from pixyproxy.service.creation.leases import lease_renewal
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.recovery import Recovery
from pixyproxy.service.creation.runner import GenerationRunner, WorkerParts
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.creation.waiting import WaitingCalls
from pixyproxy.service.creation.worker import GenerationWorker
from pixyproxy.service.generations import GenerationService
from pixyproxy.service.page_tokens import PageTokens
from pixyproxy.service.quotas import Quotas

DEFAULTS = GenerationDefaults(
    model="default-model", size="auto", quality="auto", output_format="png", background="auto"
)
LEASE = timedelta(seconds=60)
"""Longer than a machine stands still: recovery would leave expired leases alone after that."""
NO_LIMITS = QuotaLimits()
PRICES = PriceList(
    name="of-tests",
    models={
        DEFAULTS.model: ModelPrices(text_input=Decimal("0.003"), image_input=Decimal("0.008"), image_output=Decimal(1))
    },
)
"""An image of FakeGenerator by the default model costs 3 + 2 * 1000 nano-dollars."""
COST = Cost(nano_usd=2003, price_list="of-tests")


class FakeGenerator:
    """Generates at once, or does what ``behave`` says after all partial images, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.behave: Callable[[], None] = lambda: None

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        self.requests.append(request)
        number = len(self.requests)
        for index in range(request.partial_images):
            on_partial(PartialImage(index=index, content_type="image/webp", data=f"partial {number} {index}".encode()))
        self.behave()
        return GeneratedImage(
            data=f"picture {number}".encode(),
            content_type="image/webp",
            width=2,
            height=3,
            model=request.model,
            options=request.options,
            usage=Usage(input_tokens=1, output_tokens=2, total_tokens=3),
        )

    def close(self) -> None:
        pass

    def fails_with(self, *errors: Exception) -> None:
        """Fail with each of the errors in turn, and with the last one from then on."""
        left = list(errors)

        def fail() -> None:
            raise left.pop(0) if len(left) > 1 else left[0]

        self.behave = fail


def make_detail(guid: str, data: bytes) -> ImageDetail:
    """The detail of an image with these bytes."""
    now = datetime.now(UTC)
    return ImageDetail(
        guid=guid,
        prompt="A Castle, at night!",
        filename="castle.png",
        author="alice",
        content_type="image/png",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=1,
        height=1,
        model="m",
        created_at=now,
        updated_at=now,
    )


@dataclass
class Server:
    """A server on a database and a store.

    Attributes:
        database: where generations are recorded.
        store: where bytes go.
        generator: what its generation worker asks.
        limit: how many generations it may have submitted at a time.
        images_per_minute: what the rate limiter lets through, or None.
        minute: how long its minute is.
        owner: the name of its generation worker.
        lease: how long its leases last.
        observer: is told what becomes of generations.
        max_queued: how many generations may be queued.
        allows_low_moderation: whether requests may ask for low moderation.
        retention: how long requests are stored that left no image.
        poll_interval: seconds between two looks for what other servers have recorded.
        close_timeout: how long the worker waits at its end for a claim that hangs.
        give_up_after: how long a generation waits for the database.
        store_give_up_after: how long an image waits for the store.
        clock: that of the circuit breaker.
        defaults: what to generate where a request leaves it open.
        limits: the quotas of users without limits of their own.
        trace_headers: what makes others' work a part of a call's trace.
    """

    database: Database
    store: ImageStore
    generator: FakeGenerator
    limit: int = 8
    images_per_minute: int | None = None
    minute: timedelta = timedelta(minutes=1)
    owner: str = ""
    lease: timedelta = LEASE
    observer: GenerationObserver | None = None
    max_queued: int = 100
    allows_low_moderation: bool = True
    retention: timedelta | None = None
    max_reported: int = 1000
    poll_interval: float = 0.1
    close_timeout: float = 10.0
    give_up_after: float = 5.0
    store_give_up_after: float = 600.0
    clock: Callable[[], float] = time.monotonic
    defaults: GenerationDefaults = DEFAULTS
    limits: QuotaLimits = NO_LIMITS
    trace_headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.owner = self.owner or new_guid()
        self.continued: list[dict[str, str]] = []
        self.recorded, self.changed = LocalSignal(), LocalSignal()
        for one in (self.recorded, self.changed):
            # Nobody else closes them, and a run has hundreds of servers.
            weakref.finalize(self, one.close)
        self.changes = GenerationChanges([self.changed])
        self.circuits = SharedCircuits()
        self.storing = ImageStoring(
            self.database, self.store, lease=self.lease, retry_interval=0.01, give_up_after=self.store_give_up_after
        )
        limit = self.images_per_minute
        self.limiter = None if limit is None else RateLimiter(self.database, limit, self.minute)
        observer = self.observer or GenerationObserver()
        self.recovery = Recovery(
            self.database,
            self.store,
            self.storing,
            lease=self.lease,
            interval=min(0.2, self.lease.total_seconds() / 3),
            on_end=self.changes.ended,
            on_unknown=observer.outcome_unknown,
            retention=self.retention,
            max_reported=self.max_reported,
            retry_interval=0.01,
        )
        self.waiting = WaitingCalls(
            self.database,
            self.changed,
            require_closed=self.circuits.require_closed,
            interval=0.05,
            give_up_after=5.0,
        )
        self.quotas = Quotas(self.database, PRICES, self.defaults, self.limits)
        self.creator = ImageCreator(
            self.database,
            self.storing,
            self.waiting,
            defaults=self.defaults,
            quotas=self.quotas,
            require_closed=self.circuits.require_closed,
            limiter=self.limiter,
            trace_headers=lambda: self.trace_headers,
            on_record=self.recorded.send,
            max_queued=self.max_queued,
            allows_low_moderation=self.allows_low_moderation,
        )
        self.generations = GenerationService(
            self.database, self.creator, self.waiting, PageTokens("ab" * 32), on_cancel=self.changes.ended
        )
        breaker = CircuitBreaker(lambda until: self.circuits.publish(0, until), clock=self.clock)
        parts = WorkerParts(
            self.database, self.store, self.storing, self.defaults, self.owner, breaker, observer, retry_interval=0.02
        )
        runner = GenerationRunner(
            parts,
            self.generator,
            prices=PRICES,
            recovery=self.recovery,
            on_progress=self.changes.progressed,
            continuing=self._continue,
            retry_delay=partial(delay_before_retry, random_fraction=lambda: 0.01),
            give_up_after=self.give_up_after,
        )
        claims = GenerationClaims(
            parts, quotas=self.quotas, lease=self.lease, limiter=self.limiter, changes=self.changes
        )
        self.worker = GenerationWorker(
            parts,
            claims,
            runner,
            limit=self.limit,
            recorded=self.recorded,
            changes=self.changes,
            poll_interval=self.poll_interval,
            close_timeout=self.close_timeout,
        )

    @contextlib.contextmanager
    def _continue(self, headers: Mapping[str, str]) -> Iterator[None]:
        self.continued.append(dict(headers))
        yield

    @contextlib.contextmanager
    def taking_calls(self) -> Iterator[Server]:
        """Take calls, without a generation worker."""
        with closing(self.waiting):
            self.waiting.start()
            yield self

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Take calls, and generate."""
        thread = threading.Thread(target=self.worker.run, daemon=True)
        with closing(self.recovery), closing(lease_renewal(self.database, [self.owner], self.lease)) as renewal:
            for one in (self.recovery, renewal, thread):
                one.start()
            with self.taking_calls():
                yield self
            self.recorded.close_sender()
            thread.join(30)
            assert not thread.is_alive()
            assert not self.worker._submitted
