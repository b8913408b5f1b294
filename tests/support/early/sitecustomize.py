"""Loads the C extension of mysql-connector-python before pytest can import ``hashlib``, after which it cannot be loaded
where the system's OpenSSL is older than its own. `make test` puts this folder on PYTHONPATH; Python then imports this
module first of all.
"""

from contextlib import suppress

with suppress(ImportError):
    import _mysql_connector  # noqa: F401
