"""The composition root: builds everything out of the settings, and closes it in reverse. Nothing else does either."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pixyproxy.core.exceptions import ConfigurationError, ConstraintViolationError
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.image_store import ImageStore, LocalImageStore
from pixyproxy.data.mysql import MySQLDatabase
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.generation.guarded import GuardedGenerator
from pixyproxy.generation.interfaces import ImageGenerator
from pixyproxy.generation.offline import OfflineGenerator
from pixyproxy.generation.openai_images import OpenAIGenerator
from pixyproxy.observability.exposition import MetricsExposition
from pixyproxy.observability.watch import Watch
from pixyproxy.service.creation import GenerationDefaults, ImageCreator
from pixyproxy.service.image_service import ImageService
from pixyproxy.service.interfaces import ImageServiceInterface, UserServiceInterface
from pixyproxy.service.page_tokens import PageTokens, new_page_token_key
from pixyproxy.service.sign_in_throttle import SignInThrottle
from pixyproxy.service.users import UserService
from pixyproxy.settings import Settings, split_address

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics
    from pixyproxy.observability.telemetry import Telemetry

_logger = logging.getLogger(__name__)

_PAGE_TOKEN_KEY = "page_token_key"  # noqa: S105  its name, not itself


@dataclass(frozen=True)
class Application:
    """What is served."""

    images: ImageServiceInterface
    users: UserServiceInterface
    metrics: Metrics | None = None
    telemetry: Telemetry | None = None


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Open the database that the settings name, and close it at the end. Its tables may be old or missing."""
    path = settings.sqlite_path
    database: Database
    if path is not None:
        _require_folder(path)
        database = SQLiteDatabase(path, pool_size=settings.database_pool_size, pool_wait=settings.database_timeout)
    else:
        database = MySQLDatabase(
            settings.mysql_address,
            pool_size=settings.database_pool_size,
            pool_wait=settings.database_timeout,
            connect_timeout=settings.database_timeout,
            query_timeout=settings.database_timeout,
        )
    with closing(database):
        yield database


@contextmanager
def open_current_database(settings: Settings) -> Iterator[Database]:
    """Open the database with its tables in today's form: SQLite's are brought there, a server's must be.

    Raises:
        ConfigurationError: they are not.
    """
    with open_database(settings) as database:
        if settings.sqlite_path is not None:
            init.upgrade(database)
        else:
            init.require_current(database)
        yield database


def build_users(settings: Settings, database: Database) -> UserServiceInterface:
    """Build the user service alone, for administration."""
    return UserService(database, SignInThrottle(settings.max_failed_sign_ins, settings.sign_in_window))


@contextmanager
def build(settings: Settings) -> Iterator[Application]:
    """Build everything that is served, and close it at the end."""
    with ExitStack() as stack:
        metrics = _make_metrics(settings)
        telemetry = stack.enter_context(_open_telemetry(settings))
        watch = Watch(metrics, telemetry)
        opened = stack.enter_context(open_current_database(settings))
        database = watch.database(opened, settings.database_pool_size)
        store = watch.store(_open_store(settings))
        generator = stack.enter_context(closing(_build_generator(settings, watch)))
        creator = ImageCreator(
            database,
            store,
            generator,
            defaults=GenerationDefaults(
                model=settings.model,
                size=settings.size,
                quality=settings.quality,
                output_format=settings.output_format,
                background=settings.background,
            ),
            max_generations=settings.max_generations,
        )
        stack.enter_context(closing(creator))
        creator.start()
        yield Application(
            images=ImageService(database, store, creator, PageTokens(_page_token_key(database))),
            users=build_users(settings, database),
            metrics=metrics,
            telemetry=telemetry,
        )


def build_exposition(settings: Settings) -> AbstractContextManager[MetricsExposition | None]:
    """Prepare to show metrics, if that is asked for. Comes before ``build``, and before the process is forked.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    if settings.metrics_listen is None:
        return nullcontext()
    exposition = MetricsExposition(*split_address(settings.metrics_listen))
    _logger.info("Metrics are at http://%s/metrics.", exposition.address)
    return closing(exposition)


def _make_metrics(settings: Settings) -> Metrics | None:
    if settings.metrics_listen is None:
        return None
    # Only where it is wanted, and only once the exposition has been prepared: see there.
    from pixyproxy.observability.metrics import Metrics  # noqa: PLC0415

    return Metrics()


def _open_telemetry(settings: Settings) -> AbstractContextManager[Telemetry | None]:
    if settings.otel_exporter_otlp_endpoint is None:
        return nullcontext()
    try:
        # Only where it is wanted: it is an extra, and takes its time to import.
        from pixyproxy.observability.telemetry import Telemetry  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: to send traces, install pixyproxy with its extra: pixyproxy[telemetry]."
        ) from error
    return closing(Telemetry(settings.otel_exporter_otlp_protocol))


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigurationError(f"PIXYPROXY_DATABASE_URL: there is no folder {path.parent} for the database.")


def _open_store(settings: Settings) -> ImageStore:
    try:
        return LocalImageStore(Path(settings.image_store))
    except ConfigurationError as error:
        raise ConfigurationError(f"PIXYPROXY_IMAGE_STORE: {error.message}") from error


def _build_generator(settings: Settings, watch: Watch) -> ImageGenerator:
    if settings.openai_api_key is None:
        _logger.warning(
            "OPENAI_API_KEY is not set: images are drawings that PixyProxy makes of the prompt itself, not a model's."
        )
        return watch.generator(OfflineGenerator(), settings.max_generations)
    generator = OpenAIGenerator(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        organization=settings.openai_org_id,
        project=settings.openai_project_id,
        timeout=settings.provider_timeout,
    )
    # Beside the start, which need not wait for the provider.
    threading.Thread(target=_warn_of_shutdown, args=(generator, settings.model), daemon=True).start()
    guarded = GuardedGenerator(watch.provider(generator), settings.images_per_minute, watch.between)
    return watch.generator(guarded, settings.max_generations)


def _warn_of_shutdown(generator: OpenAIGenerator, model: str) -> None:
    date = generator.model_shutdown_date(model)
    if date is not None:
        _logger.warning("The provider shuts the model %s down on %s: set PIXYPROXY_MODEL to another.", model, date)


def _page_token_key(database: Database) -> str:
    """Return the key that all servers on the database seal page tokens with; the first one makes it."""
    with database.reading() as context:
        key = ServerValueRepository(context).get(_PAGE_TOKEN_KEY)
    if key is not None:
        return key
    key = new_page_token_key()
    try:
        with database.transaction() as context:
            ServerValueRepository(context).insert(_PAGE_TOKEN_KEY, key)
            context.commit()
    except ConstraintViolationError:
        return _page_token_key(database)  # Another server was faster.
    return key
