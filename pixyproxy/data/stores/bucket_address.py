"""The URLs of object stores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

# Only what every cloud takes as it stands, in names of buckets and in keys.
_URL = re.compile(r"(?P<scheme>s3|gs|az)://(?P<bucket>[A-Za-z0-9][\w.-]*)(?:/(?P<prefix>[\w.=+/-]*))?", re.ASCII)


@dataclass(frozen=True)
class BucketAddress:
    """A place in an object store.

    Attributes:
        scheme: the cloud, or what speaks as it does: ``s3``, ``gs`` (Google) or ``az`` (Azure).
        bucket: the bucket, which Azure calls a container.
        prefix: what all keys begin with, without slashes at its ends; may be empty.
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
        """Write it as a URL, always alike."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_url(store: str) -> bool:
    """Tell whether the name of a store is a URL, and not a folder."""
    return "://" in store
