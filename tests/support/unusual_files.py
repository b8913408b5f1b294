"""What may lie in the place of a file and is none, and work that may hang on it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_SECONDS = 30.0


def _symlink(path: Path) -> None:
    """Let a link lead to the very bytes that were there."""
    aside = path.parents[1] / f"aside-{path.name}"
    if path.exists():
        path.replace(aside)
    path.symlink_to(aside)


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            # The path of a socket may have only some 100 bytes.
            listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


_MAKE: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "symbolic link": _symlink,
    "link to itself": lambda path: path.symlink_to(path.name),
    "socket": _socket,
}
UNUSUAL = tuple(_MAKE)


def put_in_place(kind: str, path: Path) -> None:
    """Put something of a kind of `UNUSUAL` in the place of a file, which may be there or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind != "symbolic link":
        path.unlink(missing_ok=True)
    _MAKE[kind](path)


def in_time(work: Callable[[], Result]) -> Result:
    """Do what may hang, and fail where it takes half a minute."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(_SECONDS)
