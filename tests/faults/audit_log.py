"""Compares the audit logs of all servers of a site with what callers were told, and with the database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pixyproxy.core.fields import GenerationState
from tests.faults.outcome import Outcome
from tests.faults.site import Site

_ENDS = {
    GenerationState.FAILED: "generation.failed",
    GenerationState.CANCELLED: "generation.cancelled",
    GenerationState.OUTCOME_UNKNOWN: "generation.outcome_unknown",
}


def check_audit_log(site: Site, generations: list[dict[str, Any]], outcome: Outcome) -> None:
    """Compare what is in the logs once all lines are written.

    Args:
        site: its callers, and the logs of its servers.
        generations: guid, image guid and state of each.
        outcome: what comes of it.
    """
    lines = _distinct_lines(site, outcome)
    counts = Counter((line["action"], line["guid"]) for line in lines)
    last = {line["guid"]: line["action"] for line in sorted(lines, key=lambda line: line["time"])}
    for row in generations:
        state = GenerationState(row["state"])
        image = row["image_guid"]
        for action, stored in (
            ("image.created", state is GenerationState.SUCCEEDED),
            ("image.imported", state is GenerationState.IMPORTED),
        ):
            found = counts[action, image]
            outcome.expect(found == int(stored), f"{found} lines {action} for an image that is {state.name}: {image}")
        if state in _ENDS:
            outcome.expect(last.get(row["guid"]) == _ENDS[state], f"{last.get(row['guid'])} for {state.name}: {row}")
    for wish in site.wishes:
        if wish.image is None:
            continue
        guid = wish.image.guid
        created, deleted, updated = (counts[f"image.{done}", guid] for done in ("created", "deleted", "updated"))
        outcome.expect(created == 1, f"{created} lines for the creation of an image that a caller has: {wish}")
        is_right = deleted == 1 if wish.is_deleted else deleted <= int(wish.may_be_deleted)
        outcome.expect(is_right, f"{deleted} lines for deletions: {wish}")
        outcome.expect(updated >= wish.updates, f"{updated} lines for {wish.updates} changes or more: {wish}")


def _distinct_lines(site: Site, outcome: Outcome) -> list[dict[str, Any]]:
    """Return each line once: a kill may have it written twice, with the same id."""
    lines: dict[str, dict[str, Any]] = {}
    for line in _lines(site):
        first = lines.setdefault(line["id"], line)
        outcome.expect(first == line, f"two lines with one id: {first}, {line}")
    return list(lines.values())


def _lines(site: Site) -> Iterator[dict[str, Any]]:
    for path in site.audit_logs():
        for text in path.read_text(encoding="ascii").splitlines():
            with suppress(ValueError):  # A kill has cut it off; the whole line follows.
                yield json.loads(text)
