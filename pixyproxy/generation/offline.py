"""A generator without a provider: draws an abstract image from the prompt."""

from __future__ import annotations

import colorsys
import hashlib
import io
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pixyproxy.core.exceptions import ProviderRequestInvalidError
from pixyproxy.core.models import PartialImage
from pixyproxy.core.provider_limits import background_problem, nearest_size, size_problem
from pixyproxy.generation.image_format import FORMATS
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, InputFile, OnPartial, ignore_partial

MODEL = "offline-drawing"

_AUTO_SIZE = (1024, 1024)
_EDIT_STRENGTH = 0.5
_READ_BYTES = 1024 * 1024
_SHAPES = 12
_CAPTION_LENGTH = 48
# One pixel of the first partial image stands for as many across and down; for each further one, half as many.
_FIRST_PARTIAL_SCALE = 32

# Light compression: half the time of Pillow's defaults for a tenth more bytes.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 2},
    "webp": {"quality": 85, "method": 1},
    "jpeg": {"quality": 90},
}

Colour = tuple[int, int, int]


class OfflineGenerator:
    """Draws the same image for the same prompt, size, background and inputs.

    It refuses sizes outside the provider's documented limits, so that requests that succeed here also do there.
    """

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        """Draw one image. Its partial images are the same image with less detail.

        An edit is the first input with the drawing over it, where there is a mask only in its transparent part.

        Raises:
            ProviderRequestInvalidError: the size or the background is outside the provider's limits.
            InputUnreadableError: an input could not be read.
        """
        source = _open(request.inputs[0]) if request.inputs else None
        width, height = _parse_size(request.size, _AUTO_SIZE if source is None else nearest_size(*source.size))
        problem = background_problem(request.background, request.output_format)
        if problem is not None:
            raise ProviderRequestInvalidError("options.background", problem)
        image = _draw(request.prompt, width, height, transparent=request.background == "transparent")
        if source is not None:
            image = _edit(source, image, None if request.mask is None else _open(request.mask))
        content_type = f"image/{request.output_format}"
        for index in range(request.partial_images):
            data = _encode(_with_less_detail(image, _FIRST_PARTIAL_SCALE >> index), request.output_format)
            on_partial(PartialImage(index=index, content_type=content_type, data=data))
        return GeneratedImage(
            data=_encode(image, request.output_format),
            content_type=content_type,
            width=width,
            height=height,
            model=MODEL,
            options=request.options,
            usage=None,
        )

    def close(self) -> None:
        """Do nothing: there are no connections."""


def _parse_size(size: str, auto_size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height in pixels, within the provider's documented limits."""
    problem = size_problem(size)
    if problem is not None:
        raise ProviderRequestInvalidError("options.size", problem)
    if size == "auto":
        return auto_size
    width, height = (int(edge) for edge in size.split("x"))
    return width, height


def _draw(prompt: str, width: int, height: int, *, transparent: bool) -> Image.Image:
    digits = _digits(prompt)
    hue = next(digits)
    # Drawn at half the size and enlarged: a quarter of the work, with smooth edges.
    canvas_size = (width // 2, height // 2)
    canvas = Image.new("RGBA", canvas_size) if transparent else _gradient(canvas_size, hue, next(digits))
    _draw_shapes(canvas, hue, digits, alpha=255 if transparent else 150)
    image = canvas.resize((width, height), Image.Resampling.BICUBIC)
    _write_caption(image, prompt)
    return image


def _open(file: InputFile) -> Image.Image:
    data = b"".join(iter(lambda: file.read(_READ_BYTES), b""))
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS).convert("RGBA")
    # The stored bytes are those that came, which may be a PNG whose pixels cannot be decoded: Pillow raises anything.
    except Exception as error:
        raise ProviderRequestInvalidError("inputs", "An image cannot be decoded.") from error


def _edit(source: Image.Image, drawing: Image.Image, mask: Image.Image | None) -> Image.Image:
    """Blend a drawing over an image."""
    original = ImageOps.fit(source, drawing.size)
    edited = Image.blend(original, drawing.convert("RGBA"), _EDIT_STRENGTH)
    if mask is not None:
        is_kept = ImageOps.fit(mask, drawing.size).getchannel("A").point(lambda alpha: 255 if alpha else 0)
        edited = Image.composite(original, edited, is_kept)
    return edited.convert(drawing.mode)


def _with_less_detail(image: Image.Image, scale: int) -> Image.Image:
    return image.reduce(scale).resize(image.size, Image.Resampling.BICUBIC)


def _digits(prompt: str) -> Iterator[float]:
    """Yield numbers from 0 to 1 that depend on the prompt alone."""
    for byte in hashlib.shake_256(prompt.encode("utf-8", "surrogatepass")).digest(256):
        yield byte / 255


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _gradient(size: tuple[int, int], hue: float, slant: float) -> Image.Image:
    down = Image.linear_gradient("L")
    across = down.transpose(Image.Transpose.ROTATE_90)
    shade = Image.blend(down, across, slant).resize(size, Image.Resampling.BICUBIC)
    return ImageOps.colorize(
        shade, black=_colour(hue, 0.75, 0.25), mid=_colour(hue + 0.08, 0.65, 0.65), white=_colour(hue + 0.18, 0.4, 0.98)
    )


def _draw_shapes(canvas: Image.Image, hue: float, digits: Iterator[float], alpha: int) -> None:
    pen = ImageDraw.Draw(canvas, "RGBA")
    edge = min(canvas.size)
    for number in range(_SHAPES):
        x, y = next(digits) * canvas.width, next(digits) * canvas.height
        radius = edge * (0.05 + 0.3 * next(digits))
        # Most colours are near the background's hue; every third one contrasts with it.
        offset = 0.5 if number % 3 == 2 else 0.25
        colour = (*_colour(hue + offset * next(digits), 0.35 + 0.5 * next(digits), 0.95), alpha)
        _draw_shape(pen, number, (x, y, radius), colour, turn=360 * next(digits))


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    number: int,
    circle: tuple[float, float, float],
    colour: tuple[int, int, int, int],
    turn: float,
) -> None:
    x, y, radius = circle
    box = (x - radius, y - radius, x + radius, y + radius)
    if number % 4 == 0:
        pen.regular_polygon(circle, n_sides=3 + number // 4, rotation=turn, fill=colour)
    elif number % 4 == 1:
        pen.arc(box, turn, turn + 270, fill=colour, width=max(1, round(radius / 6)))
    else:
        pen.ellipse(box, fill=colour)


def _write_caption(image: Image.Image, prompt: str) -> None:
    """Write the start of the prompt if it is ASCII: Pillow's own font has no other characters."""
    caption = " ".join(prompt.split())[:_CAPTION_LENGTH]
    font_size = min(image.size) / 32
    if font_size < 8 or not caption.isascii():
        return
    ImageDraw.Draw(image).text(
        (font_size, image.height - font_size),
        caption,
        fill="white",
        font=ImageFont.load_default(font_size),
        anchor="ls",
        stroke_width=max(1, round(font_size / 12)),
        stroke_fill="black",
    )


def _encode(image: Image.Image, output_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, output_format, **_SAVE_OPTIONS[output_format])
    return buffer.getvalue()
