"""The composition root: builds everything out of the settings, and closes it in reverse. Nothing else does either."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pixyproxy.core.exceptions import ConfigurationError, ConstraintViolationError
from pixyproxy.core.slots import SharedSlots, Slots
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.image_store import ImageStore, LocalImageStore
from pixyproxy.data.mysql import MySQLDatabase
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.generation.guarded import GuardedGenerator
from pixyproxy.generation.interfaces import ImageGenerator
from pixyproxy.service.creation import GenerationDefaults, ImageCreator
from pixyproxy.service.generation_slots import GenerationSlots
from pixyproxy.service.image_service import ImageService
from pixyproxy.service.interfaces import ImageServiceInterface, UserServiceInterface
from pixyproxy.service.page_tokens import PageTokens, new_page_token_key
from pixyproxy.service.sign_in_throttle import SignInThrottle
from pixyproxy.service.users import UserService
from pixyproxy.settings import Settings

if TYPE_CHECKING:
    from pixyproxy.generation.openai_images import OpenAIGenerator

_logger = logging.getLogger(__name__)

# Who repeats a request waits for its generation without being one.
_CREATIONS_A_GENERATION = 2
_PAGE_TOKEN_KEY = "page_token_key"  # noqa: S105  its name, not itself


@dataclass(frozen=True)
class Limits:
    """What all workers together may have under way at a time; made before they are forked."""

    generations: SharedSlots
    creations: SharedSlots
    streams: SharedSlots

    @classmethod
    def of(cls, settings: Settings, workers: int = 1) -> Limits:
        """Make the limits that the settings name."""
        generations = settings.generation_limit(workers)
        return cls(
            generations=SharedSlots(generations, workers),
            creations=SharedSlots(_CREATIONS_A_GENERATION * generations, workers),
            streams=SharedSlots(settings.max_streams, workers),
        )

    def clear(self, worker: int) -> None:
        """Give back what a worker held that has ended."""
        self.generations.clear(worker)
        self.creations.clear(worker)
        self.streams.clear(worker)


@dataclass(frozen=True)
class Application:
    """What is served, and how many calls for it may be under way.

    Attributes:
        images: the image service.
        users: the user service.
        creations: the slots for calls that wait for a generation.
        streams: the slots for streams.
    """

    images: ImageServiceInterface
    users: UserServiceInterface
    creations: Slots
    streams: Slots


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
def build(settings: Settings, limits: Limits, *, worker: int = 0) -> Iterator[Application]:
    """Build everything that one of the workers serves, and close it at the end."""
    with ExitStack() as stack:
        database = stack.enter_context(open_current_database(settings))
        store = _open_store(settings)
        # What concerns all workers, one of them says.
        generator = stack.enter_context(closing(_build_generator(settings, warns=worker == 0)))
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
            slots=GenerationSlots(limits.generations.of(worker)),
        )
        stack.enter_context(closing(creator))
        creator.start()
        yield Application(
            images=ImageService(database, store, creator, PageTokens(_page_token_key(database))),
            users=build_users(settings, database),
            creations=limits.creations.of(worker),
            streams=limits.streams.of(worker),
        )


def load_ahead(settings: Settings) -> None:
    """Import, before workers are forked, the generator that they would all import."""
    if settings.openai_api_key is None:
        import pixyproxy.generation.offline  # noqa: PLC0415
    else:
        import pixyproxy.generation.openai_images  # noqa: F401, PLC0415


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigurationError(f"PIXYPROXY_DATABASE_URL: there is no folder {path.parent} for the database.")


def _open_store(settings: Settings) -> ImageStore:
    try:
        return LocalImageStore(Path(settings.image_store))
    except ConfigurationError as error:
        raise ConfigurationError(f"PIXYPROXY_IMAGE_STORE: {error.message}") from error


def _build_generator(settings: Settings, *, warns: bool) -> ImageGenerator:
    """Build the generator, importing only the one that is used: the provider's is half of all memory and time."""
    if settings.openai_api_key is None:
        if warns:
            _logger.warning(
                "OPENAI_API_KEY is not set: images are drawings that PixyProxy makes of the prompt itself, "
                "not a model's."
            )
        from pixyproxy.generation.offline import OfflineGenerator  # noqa: PLC0415

        return OfflineGenerator()
    from pixyproxy.generation.openai_images import OpenAIGenerator  # noqa: PLC0415

    generator = OpenAIGenerator(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        organization=settings.openai_org_id,
        project=settings.openai_project_id,
        timeout=settings.provider_timeout,
    )
    if warns:
        # Beside the start, which need not wait for the provider.
        threading.Thread(target=_warn_of_shutdown, args=(generator, settings.model), daemon=True).start()
    return GuardedGenerator(generator, settings.images_per_minute)


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
