"""Page tokens: encrypted positions, each valid for the same filters and the same caller."""

from __future__ import annotations

import base64
import binascii
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pixyproxy.core.exceptions import ConstraintViolationError, InvalidFieldError
from pixyproxy.core.models import Caller, GenerationFilter, ImageFilter, PagePosition
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.search.run_bounds import microseconds, time_of
from pixyproxy.data.transactions import in_transaction

_KEY_NAME = "page_token_key"
_POSITION = struct.Struct(">qq")  # microseconds since 1970, id
_NONCE_LENGTH = 12
_TAG_LENGTH = 16


def new_page_token_key() -> str:
    """Return a new random key, as text."""
    return AESGCM.generate_key(bit_length=256).hex()


def shared_key(database: Database) -> str:
    """Return the key for page tokens of all servers on the database; the first server creates it."""
    with database.reading() as context:
        key = ServerValueRepository(context).get(_KEY_NAME)
    if key is not None:
        return key
    key = new_page_token_key()
    try:
        in_transaction(database, lambda context: ServerValueRepository(context).insert(_KEY_NAME, key))
    except ConstraintViolationError:
        return shared_key(database)  # Another server has created it.
    return key


class PageTokens:
    """Encrypts and decrypts page tokens. All servers on one database use the same key.

    The tokens are encrypted, not only signed, because their integer ids reveal the number of images.
    """

    def __init__(self, key: str) -> None:
        """Use a key of ``new_page_token_key``."""
        self._cipher = AESGCM(bytes.fromhex(key))

    def seal(self, position: PagePosition, wanted: ImageFilter | GenerationFilter, caller: Caller | None) -> str:
        """Return the token for the page after ``position``."""
        nonce = os.urandom(_NONCE_LENGTH)
        data = _POSITION.pack(microseconds(position.created_at), position.id)
        sealed = self._cipher.encrypt(nonce, data, _question(wanted, caller))
        return _text_of(nonce + sealed)

    def open(self, token: str, wanted: ImageFilter | GenerationFilter, caller: Caller | None) -> PagePosition:
        """Return the position of a token.

        Raises:
            InvalidFieldError: the token is invalid, or belongs to another caller or to other filters.
        """
        try:
            # A token of the right length lacks one "=".
            data = base64.urlsafe_b64decode(token + "=")
            # Other texts may decode to the same bytes: the last character has bits that belong to none.
            if len(data) != _NONCE_LENGTH + _POSITION.size + _TAG_LENGTH or _text_of(data) != token:
                raise ValueError
            position = self._cipher.decrypt(data[:_NONCE_LENGTH], data[_NONCE_LENGTH:], _question(wanted, caller))
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise InvalidFieldError.of(
                "page_token",
                "is not a token for these filters and these credentials; start again without it",
            ) from error
        time, row_id = _POSITION.unpack(position)
        return PagePosition(time_of(time), row_id)


def _text_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _question(wanted: ImageFilter | GenerationFilter, caller: Caller | None) -> bytes:
    """Return the filters and the caller as authenticated data of a token."""
    who = "anonymous" if caller is None else caller.guid
    return f"{who}\n{wanted.model_dump_json()}".encode()
