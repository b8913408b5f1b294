"""What every image generator takes, gives and promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pixyproxy.core.models import PartialImage, Usage


@dataclass(frozen=True)
class GenerationRequest:
    """One image to make, with all defaults filled in.

    Attributes:
        prompt: what to draw, 1 to 32,000 characters.
        model: the provider's model.
        size: ``auto`` or ``WIDTHxHEIGHT`` in pixels.
        quality: ``auto``, ``low``, ``medium``, ``high``, ``xhigh`` or ``max``.
        output_format: ``png``, ``webp`` or ``jpeg``.
        background: ``auto``, ``opaque`` or ``transparent``.
        partial_images: how many partial images are wanted, 0 to 3.
        author_guid: who asks for it; providers are told only a hash of it.
    """

    prompt: str
    model: str
    size: str
    quality: str
    output_format: str
    background: str
    author_guid: str
    partial_images: int = 0


@dataclass(frozen=True)
class GeneratedImage:
    """An image that was made.

    Attributes:
        data: the encoded picture; whoever has taken it to where it is kept calls ``close``.
        content_type: its media type, taken from the bytes.
        width: pixels across, taken from the bytes.
        height: pixels down, taken from the bytes.
        model: what made it.
        usage: the tokens that the provider counted, or None.
    """

    data: bytes | memoryview
    content_type: str
    width: int
    height: int
    model: str
    usage: Usage | None

    def close(self) -> None:
        """Give the memory of ``data`` back at once, which then cannot be read any more."""
        if isinstance(self.data, memoryview):
            self.data.release()


OnPartial = Callable[[PartialImage], object]


def ignore_partial(_: PartialImage) -> None:
    """Do nothing with a partial image."""


class ImageGenerator(Protocol):
    """Makes images. Safe to use from many threads at once."""

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        """Generate one image, with at most one submission to a provider.

        Args:
            request: what to generate.
            on_partial: is given each partial image as it comes; it must not raise.

        Raises:
            ProviderError: there is no image; ``may_have_billed`` says whether the provider may bill for it.
        """

    def close(self) -> None:
        """Give back connections. No call may follow."""
