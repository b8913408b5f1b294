"""PixyProxy: a gRPC service that generates images from prompts, keeps them, and finds them again."""

import os
from contextlib import suppress

# First of all, before anything imports `ssl` or `hashlib`: the C extension of mysql-connector-python brings an OpenSSL
# of its own, and cannot be loaded any more once an older one of the system is there (Debian 12 has one).
with suppress(ImportError):
    import _mysql_connector  # noqa: F401

# Before anything imports `grpc`, whose core reads it only then: below errors it logs what callers sent, as
# they sent it, so that they could write lines of their own.
os.putenv("GRPC_VERBOSITY", "ERROR")
