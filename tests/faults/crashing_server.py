"""`pixyproxy serve`, made to kill itself at a chosen point: ``python -m tests.faults.crashing_server --crash-at NAME``.

With ``--pause`` it only stops there, once, and goes on when it is told to, as on a machine that was put to sleep. The
product knows nothing of it: the functions around the point are wrapped before the command line runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pixyproxy import bootstrap, cli
from pixyproxy.data.audit_log import AuditLog
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.pending_imports import PendingImportRepository
from pixyproxy.data.repositories.renditions import RenditionRepository
from pixyproxy.data.stores import local_image_store
from pixyproxy.data.stores.bucket_address import is_url
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.data.stores.object_image_store import ObjectImageStore
from pixyproxy.generation.openai.client import OpenAIGenerator
from pixyproxy.service.creation import recording, storing
from pixyproxy.service.creation.claims import GenerationClaims
from pixyproxy.service.creation.inputs import EditInputs, PinnedInput
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.runner import GenerationRunner
from pixyproxy.service.importing import importer
from pixyproxy.service.private_images import PrivateImageService
from pixyproxy.service.renditions.worker import RenditionWorker

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True)
class CrashPoint:
    """Right before or right after a function.

    Attributes:
        owner: the class or module that has the function.
        function: its name.
        is_after: whether it is done by then.
        only_if: tells by the arguments whether this call is the one.
    """

    owner: Any
    function: str
    is_after: bool = False
    only_if: Callable[..., bool] = lambda *_, **__: True

    def arm(self, halt: Callable[[], None]) -> None:
        """Call ``halt`` there, the first time that any process comes there which is forked from this one."""
        original = getattr(self.owner, self.function)
        is_first = _once()

        @wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not self.only_if(*args, **kwargs):
                return original(*args, **kwargs)
            if self.is_after:
                result = original(*args, **kwargs)
                if is_first():
                    halt()
                return result
            if is_first():
                halt()
            return original(*args, **kwargs)

        setattr(self.owner, self.function, wrapped)


def die() -> NoReturn:
    """End as by a power switch: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def pause() -> None:
    """Stop until somebody sends SIGCONT."""
    # Sent to the process, it would let this thread run on until another one has taken it.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _once() -> Callable[[], bool]:
    """Return what says yes once, to one of all the processes that ask."""
    token, give = os.pipe()
    os.write(give, b".")
    os.set_blocking(token, False)

    def is_first() -> bool:
        try:
            return bool(os.read(token, 1))
        except BlockingIOError:
            return False

    return is_first


def _is_content(_: Path, path: Path, *__: Any) -> bool:
    return path.parent.name != ".notes"


def _is_content_key(_: ObjectImageStore, key: str, *__: Any) -> bool:
    return not key.startswith(".")


def _write_half(part: Path, path: Path, data: Buffer) -> bool:
    if _is_content(part, path):
        part.write_bytes(bytes(data)[: memoryview(data).nbytes // 2])
        die()
    return _write_whole(part, path, data)


_write_whole = local_image_store._write_whole

HALF_WRITTEN = "half of the bytes written"
IMPORT_COMMITTED = "import committed"
_FOLDER_POINTS = {
    HALF_WRITTEN: CrashPoint(local_image_store, "_write_whole", only_if=_is_content),
    "bytes written, not renamed": CrashPoint(Path, "replace", only_if=_is_content),
    "bytes renamed": CrashPoint(Path, "replace", is_after=True, only_if=_is_content),
}
_OBJECT_POINTS = {
    "before the bytes are sent": CrashPoint(ObjectImageStore, "write"),
    "bytes sent, not verified": CrashPoint(ObjectImageStore, "_holds", only_if=_is_content_key),
    "bytes verified": CrashPoint(ObjectImageStore, "write", is_after=True),
}
RECORD_POINTS = {
    "before the record": CrashPoint(ImageCreator, "_record"),
    "recorded, not committed": CrashPoint(GenerationRepository, "insert", is_after=True),
    "recorded": CrashPoint(ImageCreator, "_record", is_after=True),
}
"""These are reached by the process that takes the call, all others by a generation worker."""
QUEUE_AGAIN_POINTS = {
    "failed, before it is queued again": CrashPoint(GenerationRunner, "_settle"),
    "queued again, not committed": CrashPoint(GenerationRepository, "queue_later", is_after=True),
    "queued again": CrashPoint(GenerationRunner, "_settle", is_after=True),
}
"""These are reached where the provider fails once, in a way that costs nothing."""

AUDIT_POINTS = {
    "audit lines locked, not written, not committed": CrashPoint(AuditLog, "append"),
    "audit lines written, not committed": CrashPoint(AuditLog, "append", is_after=True),
}
"""These are reached soon after the commit."""


def _points_of(store: type[ImageStore], writing: dict[str, CrashPoint]) -> dict[str, CrashPoint]:
    """All points of creating an image, those of writing its bytes among them."""
    return {
        **RECORD_POINTS,
        "before the claim": CrashPoint(GenerationClaims, "_claim"),
        "claimed, not committed": CrashPoint(GenerationRepository, "submit", is_after=True),
        "submitted, the provider not asked": CrashPoint(OpenAIGenerator, "generate"),
        **QUEUE_AGAIN_POINTS,
        "the provider has answered": CrashPoint(OpenAIGenerator, "generate", is_after=True),
        "the manifest is written": CrashPoint(store, "write_manifest", is_after=True),
        **writing,
        "before the commit": CrashPoint(storing.ImageStoring, "commit"),
        "detail inserted, not committed": CrashPoint(ImageRepository, "insert", is_after=True),
        "committed": CrashPoint(storing, "in_transaction", is_after=True),
        "before the manifest is deleted": CrashPoint(store, "delete_manifest"),
        "the manifest is deleted": CrashPoint(store, "delete_manifest", is_after=True),
        **AUDIT_POINTS,
    }


def _delete_points_of(store: type[ImageStore]) -> dict[str, CrashPoint]:
    return {
        "deleted, not committed": CrashPoint(DeletionRepository, "insert", is_after=True),
        "deletion committed": CrashPoint(storing.ImageStoring, "delete_bytes"),
        "before the bytes are deleted": CrashPoint(store, "delete"),
        "the bytes are deleted": CrashPoint(store, "delete", is_after=True),
    }


def _import_points_of(store: type[ImageStore], writing: dict[str, CrashPoint]) -> dict[str, CrashPoint]:
    """All points of importing an image, which are reached by the process that takes the call."""
    return {
        "all bytes received": CrashPoint(importer, "inspect_file"),
        "import pending, not committed": CrashPoint(PendingImportRepository, "insert", is_after=True),
        "import pending": CrashPoint(store, "write"),
        **writing,
        "import stored": CrashPoint(store, "write", is_after=True),
        "import ended, not committed": CrashPoint(PendingImportRepository, "delete", is_after=True),
        "request id inserted, not committed": CrashPoint(GenerationRepository, "insert_import", is_after=True),
        "import inserted, not committed": CrashPoint(ImageRepository, "insert", is_after=True),
        IMPORT_COMMITTED: CrashPoint(importer.ImageImporter, "_store_and_commit", is_after=True),
    }


def _rendition_points_of(store: type[ImageStore], writing: dict[str, CrashPoint]) -> dict[str, CrashPoint]:
    """All points of making a rendition, which are reached by a generation worker."""
    return {
        "before a rendition is claimed": CrashPoint(RenditionRepository, "claim"),
        "rendition claimed, not committed": CrashPoint(RenditionRepository, "claim", is_after=True),
        "rendition claimed": CrashPoint(RenditionWorker, "_make"),
        "the original is read": CrashPoint(RenditionWorker, "_read", is_after=True),
        "rendition made": CrashPoint(store, "write_rendition"),
        **writing,
        "rendition stored": CrashPoint(store, "write_rendition", is_after=True),
        "rendition recorded, not committed": CrashPoint(RenditionRepository, "complete", is_after=True),
        "rendition recorded": CrashPoint(RenditionWorker, "_keep", is_after=True),
    }


CREATE_POINTS = _points_of(LocalImageStore, _FOLDER_POINTS)
DELETE_POINTS = _delete_points_of(LocalImageStore)
UPDATE_POINTS: dict[str, CrashPoint] = {
    "updated, not committed": CrashPoint(ImageRepository, "update", is_after=True),
    "update committed": CrashPoint(PrivateImageService, "update_image", is_after=True),
}
IMPORT_POINTS = _import_points_of(LocalImageStore, _FOLDER_POINTS)
IMPORT_OBJECT_STORE_POINTS = _import_points_of(ObjectImageStore, _OBJECT_POINTS)
INPUTS_PINNED = "the inputs are pinned"
EDIT_POINTS: dict[str, CrashPoint] = {
    INPUTS_PINNED: CrashPoint(recording, "pin_inputs", is_after=True),
    "before the inputs are opened": CrashPoint(EditInputs, "opened"),
    "an input is opened": CrashPoint(EditInputs, "_open", is_after=True),
    "a part of an input is read": CrashPoint(PinnedInput, "read", is_after=True),
    "an input is read": CrashPoint(PinnedInput, "_finish", is_after=True),
    # It is the last one, and its last bytes are not sent yet.
    "the mask is read": CrashPoint(
        PinnedInput, "_finish", is_after=True, only_if=lambda file: file.name.startswith("mask")
    ),
}
"""These are reached by edits, which also reach all points of creating an image."""
RENDITION_POINTS = _rendition_points_of(
    LocalImageStore,
    {name: _FOLDER_POINTS[name] for name in ("bytes written, not renamed", "bytes renamed")},
)
RENDITION_OBJECT_STORE_POINTS = _rendition_points_of(
    ObjectImageStore, {"bytes sent, not verified": _OBJECT_POINTS["bytes sent, not verified"]}
)
POINTS = CREATE_POINTS | DELETE_POINTS | UPDATE_POINTS
OBJECT_STORE_POINTS = _points_of(ObjectImageStore, _OBJECT_POINTS) | _delete_points_of(ObjectImageStore) | UPDATE_POINTS

_OF_FOLDERS = POINTS | IMPORT_POINTS | RENDITION_POINTS
_OF_OBJECT_STORES = OBJECT_STORE_POINTS | IMPORT_OBJECT_STORE_POINTS | RENDITION_OBJECT_STORE_POINTS


def main() -> None:
    """Serve until the point is reached."""
    parser = argparse.ArgumentParser(description="pixyproxy serve that kills itself.")
    choices = _OF_FOLDERS | _OF_OBJECT_STORES | EDIT_POINTS
    parser.add_argument("--crash-at", choices=choices, help="the point")
    parser.add_argument("--pause", action="store_true", help="stop there, and do not die")
    parser.add_argument("--lease", type=float, help="seconds that leases last, where time is short")
    arguments = parser.parse_args()
    if arguments.lease:
        bootstrap.LEASE = timedelta(seconds=arguments.lease)
        defaults: Any = importer.ImageImporter.__init__.__kwdefaults__
        defaults["longest_write"] = bootstrap.LEASE
    if arguments.crash_at == HALF_WRITTEN:
        local_image_store._write_whole = _write_half
    elif arguments.crash_at:
        points = _OF_OBJECT_STORES if is_url(os.environ["PIXYPROXY_IMAGE_STORE"]) else _OF_FOLDERS
        (points | EDIT_POINTS)[arguments.crash_at].arm(pause if arguments.pause else die)
    sys.argv = ["pixyproxy", "serve"]
    cli.main()


if __name__ == "__main__":
    main()
