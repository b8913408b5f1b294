"""Writes requests as the parameters of the OpenAI Images API."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from pixyproxy.generation.interfaces import GenerationRequest, InputFile


def parameters_of(request: GenerationRequest) -> dict[str, Any]:
    """Return the API's parameters. The provider's default is ``auto``, so that it is not sent."""
    chosen = {
        "size": request.size,
        "quality": request.quality,
        "background": request.background,
        "moderation": request.moderation or "auto",
    }
    optional = {"output_compression": request.output_compression, "input_fidelity": request.input_fidelity}
    return {
        "model": request.model,
        "prompt": request.prompt,
        "n": 1,
        "output_format": request.output_format,
        "safety_identifier": hashlib.sha256(f"pixyproxy:{request.author_guid}".encode()).hexdigest(),
        **{name: value for name, value in chosen.items() if value != "auto"},
        **{name: value for name, value in optional.items() if value is not None},
        **_files_of(request),
    }


def _files_of(request: GenerationRequest) -> dict[str, Any]:
    """Return the API's parameters for images to edit, as the client takes files."""
    files = [(file.name, _Upload(file), file.content_type) for file in (*request.inputs, request.mask) if file]
    masks = {"mask": files.pop()} if request.mask else {}
    # The API takes one or several; compatible servers are used with one.
    return masks | ({"image": files[0] if len(files) == 1 else files} if files else {})


class _Upload(io.RawIOBase):
    """An input as a file object. The HTTP client seeks only to find out the size; the bytes can be read once."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (self._file.size if whence == io.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        return self._file.read(self._file.size if size < 0 else size)
