"""Authenticates callers by HTTP Basic credentials in the metadata (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from pixyproxy.core.exceptions import CredentialsInvalidError, CredentialsMissingError
from pixyproxy.core.fields import MAX_PASSWORD_LENGTH, MAX_USERNAME_LENGTH
from pixyproxy.core.models import Caller
from pixyproxy.core.request_context import caller
from pixyproxy.resource.client_address import ClientAddresses, Metadata
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import Credentials, policy_of
from pixyproxy.service.interfaces import UserServiceInterface

_AUTHORIZATION = "authorization"
_MAX_REMEMBERED = 10_000


class AuthenticationInterceptor(AroundCalls):
    """Sets the caller of each call whose method takes credentials."""

    def __init__(self, users: UserServiceInterface, addresses: ClientAddresses) -> None:
        self._users = users
        self._addresses = addresses
        # The ids of users by the hash of the authorization that was right for them when it was checked last.
        self._users_of: dict[int, int] = {}

    def client_of(self, metadata: Metadata, peer: str) -> int | str:
        """Return who shares the places of those that wait for a thread: a user, by id, or the callers of an address.

        Credentials that were never right do not count, because anybody can make up any number of them.
        """
        for key, value in metadata:
            if key == _AUTHORIZATION:
                user = self._users_of.get(hash(value))
                if user is not None:
                    return user
        return self._addresses.find(metadata, peer)

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        credentials = policy_of(method).credentials
        found = None if credentials is Credentials.IGNORED else self._authenticate(context)
        if found is None and credentials is Credentials.REQUIRED:
            raise CredentialsMissingError
        token = caller.set(found)
        try:
            yield
        finally:
            caller.reset(token)

    def _authenticate(self, context: grpc.ServicerContext) -> Caller | None:
        headers = [value for key, value in context.invocation_metadata() if key == _AUTHORIZATION]
        if not headers:
            return None
        if len(headers) > 1:
            raise CredentialsInvalidError("Send one authorization value, not several.")
        username, password = _basic_credentials(headers[0])
        found = self._users.authenticate_user(username, password, self._addresses.of(context))
        if len(self._users_of) >= _MAX_REMEMBERED:
            self._users_of.clear()
        self._users_of[hash(headers[0])] = found.user_id
        return found


def _basic_credentials(header: str | bytes) -> tuple[str, str]:
    """Read ``Basic``, a space, and the base64 of username, colon and password in UTF-8."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    scheme, _, encoded = text.strip().partition(" ")
    if scheme.lower() != "basic":
        raise CredentialsInvalidError('The authorization value must be "Basic " and base64 of username:password.')
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        # No cause is chained: it would hold the credentials.
        raise CredentialsInvalidError(
            "The authorization value cannot be read; it must be base64 of username:password in UTF-8."
        ) from None
    username, colon, password = decoded.partition(":")
    if not colon:
        raise CredentialsInvalidError("The authorization value has no colon between username and password.")
    if len(username) > MAX_USERNAME_LENGTH or len(password) > MAX_PASSWORD_LENGTH:
        raise CredentialsInvalidError("The username or the password is wrong.")
    return username, password
