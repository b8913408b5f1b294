from __future__ import annotations

import hashlib
from collections.abc import Hashable

import pytest

from pixyproxy.core.exceptions import ContentDamagedError
from pixyproxy.core.models import ImageFile
from pixyproxy.data.stores.image_store import ContentReader
from pixyproxy.service.content import CHUNK_SIZE, ImageContent, TrustedContents

_GUID = "123e4567-e89b-42d3-a456-426614174000"
_DATA = bytes(range(256)) * 1024
_OTHER = _DATA[:-1] + b"x"


class Reader(ContentReader):
    """Bytes in memory, whose state is what the test says."""

    def __init__(self, data: bytes, state: Hashable | None) -> None:
        self.size = len(data)
        self.now = state
        self.is_closed = False
        self._data = data
        self._at = 0

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, count: int) -> bytes:
        chunk = self._data[self._at : self._at + count]
        self._at += len(chunk)
        return chunk

    def state(self) -> Hashable | None:
        return self.now

    def close(self) -> None:
        self.is_closed = True


def _image(sha256: str = hashlib.sha256(_DATA).hexdigest()) -> ImageFile:
    return ImageFile.of_checked({"guid": _GUID, "size_bytes": len(_DATA), "sha256": sha256})


def _read(reader: Reader, trusted: TrustedContents) -> bytes:
    image = _image()
    return b"".join(ImageContent(image, reader, count=len(_DATA), trusted=trusted).chunks())


def test_bytes_that_were_found_right_and_not_written_to_since_are_not_hashed_again() -> None:
    trusted = TrustedContents()
    assert _read(Reader(_DATA, "one state"), trusted) == _DATA
    # Were they hashed, this would be noticed.
    assert _read(Reader(_OTHER, "one state"), trusted) == _OTHER


def test_bytes_that_were_written_to_are_hashed_again() -> None:
    trusted = TrustedContents()
    _read(Reader(_DATA, "one state"), trusted)
    with pytest.raises(ContentDamagedError):
        _read(Reader(_OTHER, "another state"), trusted)


def test_damaged_bytes_are_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    trusted = TrustedContents()
    for _ in range(2):
        with pytest.raises(ContentDamagedError):
            _read(Reader(_OTHER, "one state"), trusted)
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    assert caplog.text.count(_GUID) == 2


def test_where_the_state_is_not_known_bytes_are_always_hashed() -> None:
    trusted = TrustedContents()
    _read(Reader(_DATA, None), trusted)
    with pytest.raises(ContentDamagedError):
        _read(Reader(_OTHER, None), trusted)


def test_bytes_that_are_written_to_while_they_are_read_are_damaged() -> None:
    trusted = TrustedContents()
    _read(Reader(_DATA, "one state"), trusted)
    reader = Reader(_DATA, "one state")
    image = _image()
    chunks = ImageContent(image, reader, count=len(_DATA), trusted=trusted).chunks()
    assert len(next(chunks)) == CHUNK_SIZE
    reader.now = "another state"
    with pytest.raises(ContentDamagedError):
        list(chunks)


def test_bytes_that_are_written_to_while_they_are_hashed_are_not_trusted() -> None:
    trusted = TrustedContents()
    reader = Reader(_DATA, "one state")
    chunks = ImageContent(_image(), reader, count=len(_DATA), trusted=trusted).chunks()
    first = next(chunks)
    reader.now = "another state"
    assert first + b"".join(chunks) == _DATA
    for state in ("one state", "another state"):
        with pytest.raises(ContentDamagedError):
            _read(Reader(_OTHER, state), trusted)


def test_the_same_file_is_not_trusted_for_other_bytes() -> None:
    trusted = TrustedContents()
    _read(Reader(_DATA, "one state"), trusted)
    image = _image(sha256="0" * 64)
    with pytest.raises(ContentDamagedError):
        list(ImageContent(image, Reader(_DATA, "one state"), count=len(_DATA), trusted=trusted).chunks())


def test_bytes_that_end_too_early_are_damaged_even_if_they_are_trusted() -> None:
    trusted = TrustedContents()
    _read(Reader(_DATA, "one state"), trusted)
    with pytest.raises(ContentDamagedError):
        _read(Reader(_DATA[:CHUNK_SIZE], "one state"), trusted)


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (10, 100), (CHUNK_SIZE - 1, CHUNK_SIZE + 1)])
def test_a_part_is_given_exactly_and_not_checked(offset: int, count: int) -> None:
    # The last byte is wrong, which nobody can tell from a part.
    part = ImageContent(_image(), Reader(_OTHER, "one state"), offset=offset, count=count)
    assert b"".join(part.chunks()) == _OTHER[offset : offset + count]


def test_a_reader_is_closed_at_the_end() -> None:
    reader = Reader(_DATA, "one state")
    with ImageContent(_image(), reader, count=len(_DATA)) as content:
        assert content.is_modified
        assert not reader.is_closed
    assert reader.is_closed


def test_what_the_caller_holds_already_has_nothing_to_read() -> None:
    with ImageContent(_image()) as content:
        assert not content.is_modified
        assert list(content.chunks()) == []
