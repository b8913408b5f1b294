"""Page tokens: where a page ended, sealed so that only the same question by the same caller can go on from there."""

from __future__ import annotations

import base64
import binascii
import os
import struct
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pixyproxy.core.exceptions import InvalidFieldError
from pixyproxy.core.models import Caller, ImageFilter
from pixyproxy.data.repositories.image_conditions import ImagePosition

_POSITION = struct.Struct(">qq")  # microseconds since 1970, id
_NONCE_LENGTH = 12
_TAG_LENGTH = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_page_token_key() -> str:
    """Return a new random key, as text."""
    return AESGCM.generate_key(bit_length=256).hex()


class PageTokens:
    """Seals and opens page tokens. All servers on one database use one key, so that each takes the others' tokens.

    They are encrypted, not only signed, because the integer ids in them tell how many images there are.
    """

    def __init__(self, key: str) -> None:
        """Use a key of ``new_page_token_key``."""
        self._cipher = AESGCM(bytes.fromhex(key))

    def seal(self, position: ImagePosition, image_filter: ImageFilter, caller: Caller | None) -> str:
        """Return the token for the page after ``position``."""
        microseconds = (position.created_at - _EPOCH) // timedelta(microseconds=1)
        nonce = os.urandom(_NONCE_LENGTH)
        sealed = self._cipher.encrypt(nonce, _POSITION.pack(microseconds, position.id), _question(image_filter, caller))
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def open(self, token: str, image_filter: ImageFilter, caller: Caller | None) -> ImagePosition:
        """Return the position that a token was sealed for.

        Raises:
            InvalidFieldError: it is not one of ours, or was given to another caller or for other filters.
        """
        try:
            # Of what has the right length, one "=" was removed.
            data = base64.b64decode(token + "=", altchars=b"-_", validate=True)
            if len(data) != _NONCE_LENGTH + _POSITION.size + _TAG_LENGTH:
                raise ValueError
            position = self._cipher.decrypt(data[:_NONCE_LENGTH], data[_NONCE_LENGTH:], _question(image_filter, caller))
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise InvalidFieldError.of(
                "page_token",
                "is not a token that was given for these filters and these credentials; begin again without it",
            ) from error
        microseconds, image_id = _POSITION.unpack(position)
        return ImagePosition(_EPOCH + timedelta(microseconds=microseconds), image_id)


def _question(image_filter: ImageFilter, caller: Caller | None) -> bytes:
    """Everything that a token is bound to."""
    who = "anonymous" if caller is None else caller.guid
    return f"{who}\n{image_filter.model_dump_json()}".encode()
