"""The composition root: builds everything from the settings, and closes it in reverse order."""

from __future__ import annotations

import pixyproxy.data  # noqa: F401  before anything that imports hashlib; see there

# isort: split
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pixyproxy.core.exceptions import (
    ConfigurationError,
    PixyProxyException,
    StorageMisconfiguredError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import new_guid
from pixyproxy.core.local_signal import LocalSignal
from pixyproxy.core.models import GenerationDefaults
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.core.slots import SharedSlots, Slots
from pixyproxy.data import init
from pixyproxy.data.audit_log import AuditLog
from pixyproxy.data.clock import warn_of_wrong_clock
from pixyproxy.data.database import Database
from pixyproxy.data.galera import warn_of_node_settings
from pixyproxy.data.mysql import MySQLDatabase
from pixyproxy.data.repositories.renditions import PLACEHOLDER
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.data.stores.bucket_address import BucketAddress, is_url
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.circuit_breaker import CircuitBreaker, SharedCircuits
from pixyproxy.generation.interfaces import ImageGenerator
from pixyproxy.generation.price_list import DEFAULT_PRICE_LIST, PriceList, read_price_list
from pixyproxy.observability.exposition import MetricsExposition
from pixyproxy.observability.watch import Watch
from pixyproxy.resource.methods import Bulkhead
from pixyproxy.resource.statuses import code_of, reason_of
from pixyproxy.service.accounting import accountant
from pixyproxy.service.auditing import writing_audit_log
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
from pixyproxy.service.image_copying import ImageCopying
from pixyproxy.service.image_service import ImageService
from pixyproxy.service.importing.importer import ImageImporter
from pixyproxy.service.indexer import search_indexer
from pixyproxy.service.interfaces import ImageServiceInterface, UserServiceInterface
from pixyproxy.service.page_tokens import PageTokens, shared_key
from pixyproxy.service.quotas import Quotas
from pixyproxy.service.renditions.placeholders import placeholder_planner
from pixyproxy.service.renditions.requesting import RenditionRequests
from pixyproxy.service.renditions.worker import RenditionWorker
from pixyproxy.service.sign_in.credential_cache import CredentialCache
from pixyproxy.service.sign_in.passwords import Passwords
from pixyproxy.service.sign_in.queue import SignInQueue
from pixyproxy.service.sign_in.throttle import SignInThrottle
from pixyproxy.service.usage import UsageService
from pixyproxy.service.users import UserService
from pixyproxy.settings import Settings, split_address

if TYPE_CHECKING:
    from openai import OpenAI
    from pydantic import SecretStr

    from pixyproxy.generation.openai.client import OpenAIGenerator, ProviderModel
    from pixyproxy.observability.metrics import Metrics
    from pixyproxy.observability.telemetry import Telemetry
    from pixyproxy.service.salvaging import KeptAnswer

_logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=15)
"""How long a worker without a renewal counts as running. A running worker that cannot renew its leases does no harm: no
other worker submits its generations, and its images are committed nevertheless."""

# More than 1, because calls also wait for a slot of a generation worker, or for the generation of another call.
_CREATIONS_A_GENERATION = 2
_LIST_TIMEOUT = 30.0


@dataclass(frozen=True)
class Shared:
    """The parts that all processes of a server share. Create it before forking.

    Attributes:
        generations: the most submitted generations of each generation worker.
        slots: the slots of each bulkhead but that of unary calls, which take threads.
        owners: the name of each generation worker, which its replacement takes over.
        circuits: the circuits of the generation workers.
        prices: the price list.
        audit_log: the audit log, or None.
        recorded: sent to the generation workers when an RPC worker has recorded a request.
        changed: for each RPC worker, which generations have changed.
        renditions: sent to the generation workers when an RPC worker has requested a rendition.
    """

    generations: tuple[int, ...]
    slots: Mapping[Bulkhead, SharedSlots]
    owners: tuple[str, ...]
    circuits: SharedCircuits
    prices: PriceList
    audit_log: AuditLog | None
    recorded: LocalSignal
    changed: tuple[LocalSignal, ...]
    renditions: LocalSignal

    @classmethod
    def of(cls, settings: Settings, rpc_workers: int = 1) -> Shared:
        """Make the shared parts for a number of RPC workers.

        Raises:
            ConfigurationError: the price list has errors, or the audit log cannot be written.
        """
        limit, count = settings.generation_limit(rpc_workers), settings.generation_workers
        with _value_of("PIXYPROXY_PRICE_LIST"):
            prices = read_price_list(settings.price_list or DEFAULT_PRICE_LIST)
        with _value_of("PIXYPROXY_AUDIT_LOG"):
            audit_log = None if settings.audit_log is None else AuditLog(settings.audit_log)
        return cls(
            generations=tuple(max(1, (limit + number) // count) for number in range(count)),
            slots={
                Bulkhead.GENERATION: SharedSlots(_CREATIONS_A_GENERATION * limit, rpc_workers),
                Bulkhead.STREAM: SharedSlots(settings.max_streams, rpc_workers),
                Bulkhead.IMPORT: SharedSlots(settings.max_imports, rpc_workers),
            },
            owners=tuple(new_guid() for _ in range(count)),
            circuits=SharedCircuits(count),
            prices=prices,
            audit_log=audit_log,
            recorded=LocalSignal(),
            changed=tuple(LocalSignal() for _ in range(rpc_workers)),
            renditions=LocalSignal(),
        )

    def clear(self, rpc_worker: int) -> None:
        """Give back the slots of an RPC worker that has ended."""
        for slots in self.slots.values():
            slots.clear(rpc_worker)

    @property
    def changes(self) -> GenerationChanges:
        """Tells all RPC workers of changes of generations."""
        return GenerationChanges(self.changed)


@dataclass(frozen=True)
class Base:
    """The parts that every process has."""

    metrics: Metrics | None
    telemetry: Telemetry | None
    watch: Watch
    database: Database
    store: ImageStore
    storing: ImageStoring
    limiter: RateLimiter | None
    defaults: GenerationDefaults


@dataclass(frozen=True)
class Application:
    """The parts of an RPC worker: the services, and its slots; see ``Shared``."""

    images: ImageServiceInterface
    generations: GenerationService
    usage: UsageService
    users: UserServiceInterface
    slots: Mapping[Bulkhead, Slots]
    metrics: Metrics | None = None
    telemetry: Telemetry | None = None


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Open the database, and close it at the end. Its tables may be outdated or missing."""
    path = settings.sqlite_path
    database: Database
    if path is not None:
        if not path.parent.is_dir():
            raise ConfigurationError(f"PIXYPROXY_DATABASE_URL: there is no folder {path.parent} for the database.")
        with suppress(OSError):  # The file exists, or SQLite reports the error.
            # SQLite itself would not let the group write to it, regardless of the umask.
            path.touch(0o660, exist_ok=False)
        database = SQLiteDatabase(
            path,
            pool_size=settings.database_pool_size,
            timeout=settings.database_timeout,
            is_audited=settings.audit_log is not None,
        )
    else:
        database = MySQLDatabase(
            settings.mysql_address,
            pool_size=settings.database_pool_size,
            timeout=settings.database_timeout,
            is_audited=settings.audit_log is not None,
        )
    with closing(database):
        yield database


@contextmanager
def open_current_database(settings: Settings) -> Iterator[Database]:
    """Open the database with current tables: those of SQLite are upgraded, those of a server must be current.

    Raises:
        ConfigurationError: they are not current.
    """
    with open_database(settings) as database:
        if settings.sqlite_path is not None:
            init.upgrade(database)
        else:
            init.require_current(database)
        yield database


@contextmanager
def open_existing_database(settings: Settings) -> Iterator[Database]:
    """Open the database as ``open_current_database``, but make no file: it would be that of a wrong folder.

    Raises:
        ConfigurationError: there is no database, or its tables are not current.
    """
    path = settings.sqlite_path
    if path is not None and not path.exists():
        raise ConfigurationError(f"There is no database {path}. Check PIXYPROXY_DATABASE_URL and the current folder.")
    with open_current_database(settings) as database:
        yield database


def build_users(settings: Settings, database: Database) -> UserServiceInterface:
    """Build the user service."""
    throttle = SignInThrottle(database, settings.max_failed_sign_ins, settings.sign_in_window)
    return UserService(database, Passwords(), throttle, SignInQueue(throttle.pause), CredentialCache())


@contextmanager
def build(settings: Settings, shared: Shared, base: Base, *, rpc_worker: int = 0) -> Iterator[Application]:
    """Build the parts of the RPC worker with a number, counted from 0, and close them at the end."""
    with ExitStack() as stack:
        waiting = WaitingCalls(
            base.database,
            shared.changed[rpc_worker],
            require_closed=shared.circuits.require_closed,
            on_change=base.watch.generations.queued,
        )
        leases = lease_renewal(base.database, shared.owners, LEASE)
        renditions = RenditionRequests(base.database, on_request=shared.renditions.send)
        for task in (waiting, leases, renditions):
            stack.enter_context(closing(task))
            task.start()
        quotas = _build_quotas(settings, shared, base)
        creator = ImageCreator(
            base.database,
            base.storing,
            waiting,
            defaults=base.defaults,
            quotas=quotas,
            require_closed=shared.circuits.require_closed,
            limiter=base.limiter,
            trace_headers=base.watch.trace_headers,
            on_record=shared.recorded.send,
            max_queued=settings.max_queued,
            allows_low_moderation=settings.allow_low_moderation,
        )
        importer = ImageImporter(base.database, base.store, base.storing, max_bytes=settings.max_import_bytes)
        page_tokens = PageTokens(shared_key(base.database))
        yield Application(
            images=ImageService(base.database, base.store, base.storing, creator, importer, page_tokens, renditions),
            generations=GenerationService(base.database, creator, waiting, page_tokens, on_cancel=shared.changes.ended),
            usage=UsageService(base.database, quotas),
            users=build_users(settings, base.database),
            slots={bulkhead: slots.of(rpc_worker) for bulkhead, slots in shared.slots.items()},
            metrics=base.metrics,
            telemetry=base.telemetry,
        )


@contextmanager
def build_generation_worker(
    settings: Settings, shared: Shared, base: Base, *, number: int = 0
) -> Iterator[GenerationWorker]:
    """Build the generation worker with a number, counted from 0, and start its tasks, which are closed at the end.

    The tasks are recovery, renditions, the search index, the costs and others.
    """
    with ExitStack() as stack:
        owner, limit, observer = shared.owners[number], shared.generations[number], base.watch.generations
        recovery = _build_recovery(settings, shared, base)
        tasks: tuple[RenditionWorker | Recovery | PeriodicTask, ...] = (
            lease_renewal(base.database, [owner], LEASE),
            recovery,
            search_indexer(base.database),
            accountant(base.database, shared.prices),
            RenditionWorker(base.database, base.store, owner=owner, requested=shared.renditions),
            placeholder_planner(base.database),
        )
        for task in tasks:
            stack.enter_context(closing(task))
            task.start()
        if shared.audit_log is not None:
            stack.enter_context(writing_audit_log(base.database, shared.audit_log, _outcome_of))
        observer.set_slots(limit)
        if number == 0:
            warn_of_node_settings(base.database)
            warn_of_wrong_clock(base.database)
        breaker = CircuitBreaker(partial(shared.circuits.publish, number), observer.circuit_changed)
        parts = WorkerParts(base.database, base.store, base.storing, base.defaults, owner, breaker, observer)
        runner = GenerationRunner(
            parts,
            stack.enter_context(closing(_build_generator(settings, base.watch))),
            prices=shared.prices,
            recovery=recovery,
            on_progress=shared.changes.progressed,
            continuing=base.watch.continuing,
        )
        claims = GenerationClaims(
            parts,
            quotas=_build_quotas(settings, shared, base),
            lease=LEASE,
            limiter=base.limiter,
            changes=shared.changes,
        )
        yield GenerationWorker(parts, claims, runner, limit=limit, recorded=shared.recorded, changes=shared.changes)


def _build_recovery(settings: Settings, shared: Shared, base: Base) -> Recovery:
    days = settings.generation_retention
    return Recovery(
        base.database,
        base.store,
        base.storing,
        lease=LEASE,
        interval=LEASE.total_seconds() / 3,
        on_end=shared.changes.ended,
        on_unknown=base.watch.generations.outcome_unknown,
        retention=None if days is None else timedelta(days=days),
    )


def _build_quotas(settings: Settings, shared: Shared, base: Base) -> Quotas:
    return Quotas(base.database, shared.prices, base.defaults, settings.user_limits)


@contextmanager
def open_base(settings: Settings) -> Iterator[Base]:
    """Open the parts that every process has, and close them at the end."""
    with ExitStack() as stack:
        metrics = _make_metrics(settings)
        telemetry = stack.enter_context(_open_telemetry(settings))
        watch = Watch(metrics, telemetry)
        opened = stack.enter_context(open_current_database(settings))
        database = watch.database(opened, settings.database_pool_size)
        store = watch.store(_open_store(settings))
        yield Base(
            metrics=metrics,
            telemetry=telemetry,
            watch=watch,
            database=database,
            store=store,
            storing=ImageStoring(
                database, store, lease=LEASE, planned_renditions=(PLACEHOLDER, *settings.planned_renditions)
            ),
            limiter=None if settings.images_per_minute is None else RateLimiter(database, settings.images_per_minute),
            defaults=GenerationDefaults(
                model=settings.model,
                size=settings.size,
                quality=settings.quality,
                output_format=settings.output_format,
                background=settings.background,
            ),
        )


@contextmanager
def build_copying(settings: Settings, source: str, target: str, *, deletes_source: bool) -> Iterator[ImageCopying]:
    """Build the copying of images from one store to another; stores are named as in ``open_store``.

    Raises:
        ConfigurationError: a name is invalid, or the source must not be deleted.
    """
    if _place(source) == _place(target):
        raise ConfigurationError("--from and --to are the same store.")
    # Who deletes the old folder afterwards would delete all images.
    if not is_url(target) and Path(_place(target)).is_relative_to(_place(source)):
        raise ConfigurationError("--to is a folder within --from.")
    if deletes_source and _place(source) == _place(settings.image_store):
        raise ConfigurationError(
            "--delete-source: PIXYPROXY_IMAGE_STORE still names that store; first switch all servers to the other one."
        )
    if not is_url(source) and not Path(source).is_dir():
        raise ConfigurationError(f"--from: there is no folder {source}.")
    with open_existing_database(settings) as database:
        opened_source, opened_target = open_store(settings, source), open_store(settings, target)
        # A mounted bucket is also a folder: each image would be its own verified copy.
        if deletes_source and opened_source.guid() == opened_target.guid():
            raise ConfigurationError(
                "--delete-source: --from and --to are the same store by their .guid, under two names, or one is a copy "
                "of the other; nothing was deleted."
            )
        yield ImageCopying(database, opened_source, opened_target, deletes_source=deletes_source)


def read_kept_answer(settings: Settings, guid: str) -> KeptAnswer:
    """Read what was kept aside in the server's store; raises as ``read_kept``."""
    # It imports what decodes answers, which only generation workers need.
    from pixyproxy.service.salvaging import read_kept  # noqa: PLC0415

    with open_existing_database(settings) as database:
        return read_kept(database, _open_store(settings), guid)


def _place(store: str) -> str:
    return store.rstrip("/") if is_url(store) else str(Path(store).resolve())


def build_exposition(settings: Settings) -> AbstractContextManager[MetricsExposition | None]:
    """Prepare to serve metrics, if that is enabled. Call it before ``open_base``, and before forking.

    Raises:
        ConfigurationError: the port is not available.
    """
    if settings.metrics_listen is None:
        return nullcontext()
    exposition = MetricsExposition(*split_address(settings.metrics_listen))
    _logger.info("Serving metrics at http://%s/metrics.", exposition.address)
    return closing(exposition)


def _make_metrics(settings: Settings) -> Metrics | None:
    if settings.metrics_listen is None:
        return None
    # After the exposition has set the folder of the metrics.
    from pixyproxy.observability.metrics import Metrics  # noqa: PLC0415

    return Metrics()


def _open_telemetry(settings: Settings) -> AbstractContextManager[Telemetry | None]:
    if settings.otel_exporter_otlp_endpoint is None:
        return nullcontext()
    try:
        # An extra, which is slow to import.
        from pixyproxy.observability.telemetry import Telemetry  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: to send traces, install pixyproxy with its extra: pixyproxy[telemetry]."
        ) from error
    return closing(Telemetry(settings.otel_exporter_otlp_protocol))


def _open_store(settings: Settings) -> ImageStore:
    with _value_of("PIXYPROXY_IMAGE_STORE"):
        return open_store(settings, settings.image_store)


def open_store(settings: Settings, name: str) -> ImageStore:
    """Open the store that a name stands for: a folder, which is made if it is missing, or the URL of an object store.

    Raises:
        ConfigurationError: the store cannot be used. An object store that is unavailable is not an error.
    """
    if not is_url(name):
        return LocalImageStore(Path(name))
    # Imported only if needed, because it takes 5 MiB.
    from pixyproxy.data.stores.object_image_store import ObjectImageStore  # noqa: PLC0415

    try:
        address = BucketAddress.parse(name)
    except ValueError as error:
        raise ConfigurationError(f"a store {error}.") from error
    try:
        store = ObjectImageStore.at(address, timeout=settings.image_store_timeout, allow_http=settings.aws_allow_http)
        store.list_manifests()  # A small request, which shows whether the store can be used.
    except StorageMisconfiguredError as error:
        raise ConfigurationError(f"{address} cannot be used; the log says why.") from error
    except StorageUnavailableError:
        _logger.warning("The image store is unavailable; until it is back, images are neither generated nor read.")
    return store


def _build_generator(settings: Settings, watch: Watch) -> ImageGenerator:
    """Build the generator. Only its module is imported: that of OpenAI takes half of all memory and start time."""
    if settings.openai_api_key is None:
        _logger.warning("OPENAI_API_KEY is not set: PixyProxy draws images from prompts itself, without a model.")
        from pixyproxy.generation.offline import OfflineGenerator  # noqa: PLC0415

        return watch.traced(OfflineGenerator())
    from pixyproxy.generation.openai.client import OpenAIGenerator  # noqa: PLC0415

    client = _make_client(settings, settings.openai_api_key, settings.provider_timeout)
    generator = OpenAIGenerator(client, always_streams=settings.stream_provider, image_hosts=settings.image_hosts)
    # In a thread, so that the start does not wait for the provider.
    threading.Thread(target=_warn_of_shutdown, args=(generator, settings.model), daemon=True).start()
    return watch.traced(watch.provider(generator))


def list_models(settings: Settings) -> list[ProviderModel]:
    """Return the models that the provider's account offers.

    Raises:
        ConfigurationError: there is no key.
        ProviderError: the provider refuses, or cannot be reached, or sends no list of models.
    """
    if settings.openai_api_key is None:
        raise ConfigurationError("OPENAI_API_KEY is not set: the offline generator draws, and there are no models.")
    from pixyproxy.generation.openai.client import OpenAIGenerator  # noqa: PLC0415

    with closing(OpenAIGenerator(_make_client(settings, settings.openai_api_key, _LIST_TIMEOUT))) as generator:
        return generator.models()


def _make_client(settings: Settings, api_key: SecretStr, timeout: float) -> OpenAI:
    from pixyproxy.generation.openai.client import make_client  # noqa: PLC0415

    return make_client(
        api_key=api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        organization=settings.openai_org_id,
        project=settings.openai_project_id,
        timeout=timeout,
    )


def _warn_of_shutdown(generator: OpenAIGenerator, model: str) -> None:
    date = generator.model_shutdown_date(model)
    if date is not None:
        _logger.warning("The provider shuts down the model %s on %s: set PIXYPROXY_MODEL to another one.", model, date)


@contextmanager
def _value_of(setting: str) -> Iterator[None]:
    """Name the setting in errors that its value causes."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{setting}: {error.message}") from error


def _outcome_of(error: PixyProxyException) -> dict[str, str]:
    return {"outcome": code_of(error), "reason": reason_of(error)}
