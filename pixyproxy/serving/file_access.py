"""File modes: they protect prompts, password hashes and images from others, and may keep the server from writing."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

from pixyproxy.data.stores.bucket_address import is_url
from pixyproxy.settings import Settings

_logger = logging.getLogger(__name__)


def protect_new_files(settings: Settings) -> None:
    """Deny others access to the files that this process and its children create.

    This changes the umask of the whole process, so call it before other threads start.
    """
    os.umask(_denied(settings))


def protect_existing_files(settings: Settings) -> None:
    """Deny others access to the database files and to the image folder, and so to all images; warn if that fails."""
    for path in _paths(settings):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & _denied(settings):
                continue
            if mode & stat.S_ISVTX:
                raise PermissionError(errno.EPERM, "it is a folder for all users, such as /tmp")
            path.chmod(mode & ~_denied(settings))
        except FileNotFoundError:
            pass
        except OSError as error:
            _logger.warning(
                "Other users of this machine may read %s, and its mode cannot be changed: %s.", path, error.strerror
            )


def warn_of_read_only_folder(settings: Settings) -> None:
    """Warn if the image folder exists and cannot be written to: the server can only serve what is there."""
    folder = settings.image_store
    if not is_url(folder) and os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
        _logger.warning(
            "PIXYPROXY_IMAGE_STORE: this user may not write to the image folder %s, so no images can be created or "
            "deleted. Make the user its owner, make its file system writable, or name another folder.",
            folder,
        )


def _denied(settings: Settings) -> int:
    return 0o007 if settings.allow_group_access else 0o077


def _paths(settings: Settings) -> list[Path]:
    paths = [] if is_url(settings.image_store) else [Path(settings.image_store)]
    if settings.sqlite_path is not None:
        # SQLite creates its other files beside the database itself, not beside a link to it.
        database = os.path.realpath(settings.sqlite_path)
        paths += [Path(database + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    return paths
