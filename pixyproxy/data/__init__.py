"""Where everything is kept: the databases behind repositories, and the store of image bytes.

The C extension of mysql-connector-python brings an OpenSSL of its own, and cannot be loaded any more once an older one
of the system is there (Debian 12 has one): whoever serves imports this package before anything that imports `ssl` or
`hashlib`.
"""

from contextlib import suppress

with suppress(ImportError):
    import _mysql_connector  # noqa: F401
