"""Errors as JSON: the error of a generation worker is raised again in the process where the call waits.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pixyproxy.core.exceptions import PixyProxyException


def to_record(error: PixyProxyException) -> str:
    """Return an error as JSON: the name of its class and its attributes, without its cause."""
    return json.dumps({"type": type(error).__name__, **vars(error)})


def from_record(record: str) -> PixyProxyException:
    """Return the error of a record; a ``PixyProxyException`` if this release does not know its class."""
    attributes = json.loads(record)
    kind = _KINDS.get(attributes.pop("type"), PixyProxyException)
    # Without the constructor: each class takes different arguments.
    error = kind.__new__(kind, attributes["message"])
    vars(error).update(attributes)
    return error


def with_subclasses(kind: type[PixyProxyException]) -> Iterator[type[PixyProxyException]]:
    """Yield a class and all that are derived from it."""
    yield kind
    for subclass in kind.__subclasses__():
        yield from with_subclasses(subclass)


_KINDS = {kind.__name__: kind for kind in with_subclasses(PixyProxyException)}
