"""The URLs of object stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

# Only characters that every cloud allows in names of buckets and in keys without escaping.
_URL = re.compile(r"(?P<scheme>s3|gs|az)://(?P<bucket>[A-Za-z0-9][\w.-]*)(?:/(?P<prefix>[\w.=+/-]*))?", re.ASCII)


@dataclass(frozen=True)
class BucketAddress:
    """A bucket of an object store, and a prefix.

    Attributes:
        scheme: the protocol: ``s3``, ``gs`` (Google) or ``az`` (Azure).
        bucket: the bucket, which Azure calls a container.
        prefix: the prefix of all keys, without slashes at its ends; may be empty.
    """

    scheme: str
    bucket: str
    prefix: str

    RULE = (
        "must be a folder, or the URL of an object store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX"
    )
    NO_CREDENTIALS_RULE = "must hold no credentials; they are read from the variables of the cloud"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            ValueError: it is not one of an object store, or holds credentials; the message is a rule, without the URL.
        """
        if "@" in url:
            raise ValueError(cls.NO_CREDENTIALS_RULE)
        match = _URL.fullmatch(url)
        if match is None:
            raise ValueError(cls.RULE)
        prefix = (match["prefix"] or "").removesuffix("/")
        if prefix and not {".", "..", ""}.isdisjoint(prefix.split("/")):
            raise ValueError(cls.RULE)
        return cls(match["scheme"], match["bucket"], prefix)

    def __str__(self) -> str:
        """Return the URL in its canonical form."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_url(store: str) -> bool:
    """Tell whether a store is given as a URL, not as a folder."""
    return "://" in store
