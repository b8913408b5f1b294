"""Looks, when all is over, whether what callers were told is so: through the API, and in database and store."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pixyproxy.data.database import Database
from tests.faults.audit_log import check_audit_log
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, STILL_UNDER_WAY, WAIT_TIMEOUT, Answer, Site, Wish
from tests.support.openai_stand_in import Fault, Submission
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_ASKERS = 8
# The stand-in has answered these without generating an image.
_FREE_FAULTS = frozenset({"400", "401", "403", "404", "429", "503", "moderation_blocked", "redirect"})
_PASSING = frozenset({STILL_UNDER_WAY, "DATABASE_UNAVAILABLE", "CONFLICT", "TOO_BUSY"})


@dataclass(frozen=True)
class Expected:
    """What may come of asking again for what was not acknowledged.

    Attributes:
        unknown: whether OUTCOME_UNKNOWN is honest there: something was killed or cut off for good.
        refused: reasons that are right as well, such as PROMPT_REFUSED.
    """

    unknown: bool = False
    refused: frozenset[str] = frozenset()


def audit(site: Site, server: RunningServer, outcome: Outcome, expected: Expected) -> None:
    """Ask for everything once more, check everything, and count it into the outcome."""
    _ask_again(site, server, outcome, expected)
    with server.database() as database:
        _wait_until_tidy(server, database, outcome)
        for wish in site.wishes:
            _check_wish(site, server, wish, outcome)
        _check_store(server, database, outcome)
        _check_generations(database, outcome)
        check_audit_log(site, _rows(database, "SELECT guid, image_guid, state FROM generations"), outcome)
    _check_bill(site, outcome)
    outcome.acknowledged += sum(wish.image is not None for wish in site.wishes)


# --- What callers see ------------------------------------------------------------------------------------------------


def ask_until_settled(site: Site, server: RunningServer, wish: Wish) -> Answer:
    """Ask for an image until the answer is a last one."""
    deadline = time.monotonic() + WAIT_TIMEOUT
    while True:
        answer = site.create(server, wish)
        if answer.reason not in _PASSING or time.monotonic() > deadline:
            return answer


def _ask_again(site: Site, server: RunningServer, outcome: Outcome, expected: Expected) -> None:
    def ask(wish: Wish) -> None:
        before = wish.image
        answer = ask_until_settled(site, server, wish)
        if before is not None:
            again = answer.value.image.guid if answer.is_ok else answer.as_told
            is_gone = wish.may_be_deleted and answer.reason == "IMAGE_NOT_FOUND"
            outcome.expect(again == before.guid or is_gone, f"asked again, another answer ({again}): {wish}")
        elif answer.reason == OUTCOME_UNKNOWN:
            # Where the answer to the commit of a claim was lost, the provider may not have been asked: nothing is lost.
            if not expected.unknown and site.stand_in.count(wish.prompt) > 0:
                outcome.lost.append(f"nothing was killed, and its outcome is unknown: {wish}")
        else:
            outcome.expect(answer.is_ok or answer.reason in expected.refused, f"asked again, {answer.as_told}: {wish}")

    with ThreadPoolExecutor(_ASKERS) as pool:
        # Without a request id it would be another request.
        list(pool.map(ask, [wish for wish in site.wishes if wish.request_id]))


def _check_wish(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    if wish.image is None:
        return
    answer = site.get(server, wish.image.guid)
    if wish.is_deleted:
        outcome.expect(answer.reason == "IMAGE_NOT_FOUND", f"deleted, and there ({answer.as_told}): {wish}")
        return
    if wish.may_be_deleted and answer.reason == "IMAGE_NOT_FOUND":
        return
    if not answer.is_ok:
        outcome.lost.append(f"{answer.as_told}: {wish}")
        return
    tags = tuple(answer.value.image.tags)
    outcome.expect(tags in wish.tags, f"tags {tags} in place of {wish.tags}: {wish}")
    content = site.content(server, wish.image.guid)
    data = content.data
    is_whole = len(data) == wish.image.size_bytes and hashlib.sha256(data).hexdigest() == wish.image.sha256
    if not (content.is_ok and is_whole):
        outcome.lost.append(f"{content.as_told}, {len(data)} of {wish.image.size_bytes} bytes: {wish}")


def _check_bill(site: Site, outcome: Outcome) -> None:
    submitted = Counter(request["prompt"] for request in site.stand_in.all_submissions()["requests"])
    for wish in site.wishes:
        earlier = range(1, submitted[wish.prompt])
        if any(may_have_billed(wish.prompt, number) for number in earlier):
            outcome.billed_twice.append(f"submitted {submitted[wish.prompt]} times: {wish}")


def may_have_billed(prompt: str, number: int) -> bool:
    """Whether the stand-in's answer to a submission leaves it possible that an image was generated."""
    fault = Fault.of(Submission({"prompt": prompt}, {}, number))
    is_refusal = fault is not None and (fault.name, fault.value) == ("stream_error", "0") and "code" in fault.options
    return fault is None or not (is_refusal or fault.name in _FREE_FAULTS)


# --- What lies in the database and the store -------------------------------------------------------------------------


def _wait_until_tidy(server: RunningServer, database: Database, outcome: Outcome) -> None:
    """Recovery runs every few seconds."""
    try:
        wait_until(lambda: not _untidy(server, database), WAIT_TIMEOUT, "recovery")
    except TimeoutError:
        outcome.problems.append(f"left behind: {_untidy(server, database)}")


def _untidy(server: RunningServer, database: Database) -> list[str]:
    store = server.image_folder
    left = [str(path.relative_to(store)) for name in (".notes", ".parts") for path in (store / name).glob("*")]
    return (
        left
        + [
            f"{what} of {row['image_guid']}"
            for what, table in (("deletion", "deletions"), ("import", "pending_imports"))
            for row in _rows(database, f"SELECT image_guid FROM {table}")
        ]
        + [f"line {row['line']}" for row in _rows(database, "SELECT line FROM audit_outbox")]
    )


def _check_store(server: RunningServer, database: Database, outcome: Outcome) -> None:
    details = {row["guid"]: row for row in _rows(database, "SELECT guid, size_bytes, sha256 FROM images")}
    files = {path.name: path for path in server.image_files()}
    for guid in details.keys() - files.keys():
        outcome.problems.append(f"a detail without bytes: {guid}")
    for guid in files.keys() - details.keys():
        outcome.problems.append(f"bytes without a detail: {guid}")
    for guid in files.keys() & details.keys():
        data = files[guid].read_bytes()
        outcome.expect(
            hashlib.sha256(data).hexdigest() == details[guid]["sha256"] and files[guid] == server.image_file(guid),
            f"other bytes than the detail says: {guid}",
        )


def _check_generations(database: Database, outcome: Outcome) -> None:
    rows = _rows(database, "SELECT request_id, state FROM generations WHERE state IN ('recorded', 'queued', 'sent')")
    for row in rows:
        outcome.problems.append(f"a generation that nobody works on is still {row['state']}: {row['request_id']}")
    stored = _rows(
        database,
        "SELECT image_guid FROM generations WHERE state NOT IN ('stored', 'imported') "
        "AND EXISTS (SELECT 1 FROM images WHERE images.guid = generations.image_guid)",
    )
    outcome.expect(not stored, f"committed images whose generations say otherwise: {stored}")


def _rows(database: Database, sql: str) -> list[dict[str, Any]]:
    with database.reading() as context:
        return context.fetch_all(sql, {})
