"""What ``create --like`` takes from an image."""

from __future__ import annotations

from typing import Any

from pixyproxy.cli import warn
from pixyproxy.cli.failures import refuse
from pixyproxy.cli.texts import printable
from pixyproxy.client import ImageDetail, Origin


def options_like(image: ImageDetail, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an image, with those that are given in place of them, by their names in CreateOptions.

    Its tags, filename and visibility are not taken: they say what became of it, not how it was made. Partial images
    are not taken either: they cost tokens, and are of use only to those who watch. An image that was not generated, or
    whose sources cannot be used, ends the program.
    """
    if image.origin is Origin.IMPORTED:
        refuse(f"The image {printable(image.guid)} was imported: there is nothing to make it again from.")
    if image.origin is Origin.EDITED and not image.source_guids:
        refuse(f"The image {printable(image.guid)} was made from images that are deleted, or that you may not see.")
    if image.options is None:
        warn(
            "The image has no options, because an earlier release of the server made it: only its prompt and its model "
            "are taken."
        )
        return {"model": image.model} | given
    taken = image.options.as_dict()
    taken.pop("partial_images", None)
    if given.get("output_format", taken.get("output_format")) != taken.get("output_format"):
        taken.pop("output_compression", None)  # It belongs to the format.
    if image.origin is Origin.EDITED:
        taken["inputs"] = image.source_guids
        warn("The image was made from others. If a mask was used, it was not stored, so none is used now.")
    return taken | given
