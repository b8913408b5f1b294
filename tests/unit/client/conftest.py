from tests.support.client_kinds import make_client

__all__ = ["make_client"]
