"""Databases with their repositories, and stores of image bytes.

The C extension of mysql-connector-python has an OpenSSL of its own, and cannot be loaded after an older one of the
system, as on Debian 12. So a server imports this package before anything that imports `ssl` or `hashlib`.
"""

from contextlib import suppress

with suppress(ImportError):
    import _mysql_connector  # noqa: F401
