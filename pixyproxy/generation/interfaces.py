"""The interface of image generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pixyproxy.core.models import GenerationOptions, PartialImage, Usage


class InputFile(Protocol):
    """The bytes of an image to edit, or of a mask, to be read once, by one thread.

    Attributes:
        name: a file name for the provider.
        content_type: the media type.
        size: the number of bytes.
    """

    name: str
    content_type: str
    size: int

    def read(self, count: int) -> bytes:
        """Return up to ``count`` of the next bytes, and none at the end.

        The last bytes are returned only if all are those that the generation was recorded for.

        Raises:
            InputUnreadableError: they are missing or different, or cannot be read.
        """


@dataclass(frozen=True)
class GenerationRequest:
    """A request for one image, with all defaults filled in.

    Attributes:
        prompt: 1 to 32,000 characters.
        model: the provider's model.
        size: ``auto`` or ``WIDTHxHEIGHT`` in pixels.
        quality: ``auto``, ``low``, ``medium``, ``high``, ``xhigh`` or ``max``.
        output_format: ``png``, ``webp`` or ``jpeg``.
        background: ``auto``, ``opaque`` or ``transparent``.
        partial_images: the number of partial images, 0 to 3.
        moderation: ``auto`` or ``low``; None for the provider's default.
        output_compression: 0 to 100; None for the provider's default.
        input_fidelity: ``low`` or ``high``; None for the provider's default.
        author_guid: the user; providers receive only a hash of it.
        inputs: the images to edit; empty for an image from the prompt alone.
        mask: the image whose fully transparent pixels mark what to change of the first input, or None.
    """

    prompt: str
    model: str
    size: str
    quality: str
    output_format: str
    background: str
    author_guid: str
    partial_images: int = 0
    moderation: str | None = None
    output_compression: int | None = None
    input_fidelity: str | None = None
    inputs: tuple[InputFile, ...] = ()
    mask: InputFile | None = None

    @property
    def options(self) -> GenerationOptions:
        """The options that are asked for."""
        asked = {name: getattr(self, name) for name in GenerationOptions.model_fields}
        return GenerationOptions.of_checked(asked | {"partial_images": self.partial_images or None})


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image.

    Attributes:
        data: the image bytes. After storing them, call ``close``.
        content_type: the media type, taken from the bytes.
        width: in pixels, taken from the bytes.
        height: in pixels, taken from the bytes.
        model: the model that generated it.
        options: the options that the provider used, as far as it says, and otherwise those that were asked for.
        usage: the tokens that the provider counted, or None.
    """

    data: bytes | memoryview
    content_type: str
    width: int
    height: int
    model: str
    options: GenerationOptions
    usage: Usage | None

    def close(self) -> None:
        """Release the memory of ``data``, which cannot be read afterwards."""
        if isinstance(self.data, memoryview):
            self.data.release()


OnPartial = Callable[[PartialImage], object]


def ignore_partial(_: PartialImage) -> None:
    """Do nothing with a partial image."""


class ImageGenerator(Protocol):
    """Generates images. Safe for use by several threads."""

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        """Generate one image, with at most one submission to a provider.

        Args:
            request: what to generate.
            on_partial: called with each partial image as it comes; it must not raise.

        Raises:
            ProviderError: there is no image; ``may_have_billed`` says whether the provider may bill for it.
            InputUnreadableError: an input could not be read, so that the provider executed nothing.
        """

    def close(self) -> None:
        """Close connections. No call may follow."""
