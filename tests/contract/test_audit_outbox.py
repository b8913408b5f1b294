"""What the outbox of the audit log must do on every database: with transactions, several writers, and after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pixyproxy.core.exceptions import PixyProxyException, PromptRefusedError
from pixyproxy.core.fields import new_guid
from pixyproxy.core.request_context import call_id
from pixyproxy.data.audit_log import AuditLog
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.audit_outbox import AuditOutboxRepository
from pixyproxy.service.auditing import write_some, writing_audit_log
from tests.contract.databases import open_database
from tests.support.waiting import wait_until

_TIMEOUT = 60.0


@pytest.fixture
def audited(database: Database, database_url: str) -> Iterator[Database]:
    """The database, as a server with an audit log opens it."""
    del database  # It is emptied.
    with closing(open_database(database_url, is_audited=True)) as audited:
        yield audited


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path: Path) -> AuditLog:
    return AuditLog(str(path))


def outcome_of(error: PixyProxyException) -> dict[str, str]:
    return {"outcome": type(error).__name__}


def add(database: Database, *guids: str, **facts: Any) -> None:
    with database.transaction() as context:
        for guid in guids:
            AuditOutboxRepository(context).add("image.deleted", "ann", guid, **facts)
        context.commit()


def pending(database: Database) -> int:
    with database.reading() as context:
        return len(AuditOutboxRepository(context).get_oldest(100_000))


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def guids_in(path: Path) -> list[str]:
    return [line["guid"] for line in lines_in(path)]


def test_a_line_is_committed_or_rolled_back_with_its_change(audited: Database, log: AuditLog, path: Path) -> None:
    kept, dropped = new_guid(), new_guid()
    add(audited, kept)
    with audited.transaction() as context:
        AuditOutboxRepository(context).add("image.deleted", "ann", dropped)

    assert not write_some(audited, log, outcome_of)

    assert guids_in(path) == [kept]
    assert pending(audited) == 0


def test_without_an_audit_log_there_are_no_lines(database: Database) -> None:
    add(database, new_guid())
    assert pending(database) == 0


def test_a_line_has_its_fields_whatever_is_in_a_username(audited: Database, log: AuditLog, path: Path) -> None:
    token = call_id.set("host-1")
    try:
        with audited.transaction() as context:
            outbox = AuditOutboxRepository(context)
            outbox.add("image.deleted", 'Zoë "Ω" \n 🦊', "g", author="ann", error=PromptRefusedError("No fox."))
            context.commit()
    finally:
        call_id.reset(token)
    add(audited, "h", call_id="")

    write_some(audited, log, outcome_of)

    first, second = lines_in(path)
    assert first.pop("id") != second.pop("id")
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "action": "image.deleted",
        "actor": 'Zoë "Ω" \n 🦊',
        "guid": "g",
        "author": "ann",
        "call_id": "host-1",
        "outcome": "PromptRefusedError",
    }
    assert second == {"action": "image.deleted", "actor": "ann", "guid": "h", "outcome": "OK"}


def test_several_writers_write_each_line_once(audited: Database, tmp_path: Path) -> None:
    guids = [new_guid() for _ in range(300)]
    add(audited, *guids)
    paths = [tmp_path / f"{number}.jsonl" for number in range(4)]

    def write_all(path: Path) -> None:
        log = AuditLog(str(path))
        while pending(audited):
            write_some(audited, log, outcome_of, limit=7)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_all, paths))

    assert sorted(guid for path in paths for guid in guids_in(path)) == sorted(guids)


def test_changes_are_made_while_lines_are_written(audited: Database, log: AuditLog, path: Path) -> None:
    guids = [[new_guid() for _ in range(50)] for _ in range(3)]

    def add_one_by_one(own: list[str]) -> None:
        for guid in own:
            add(audited, guid)

    with writing_audit_log(audited, log, outcome_of, interval=0.0), ThreadPoolExecutor(3) as pool:
        list(pool.map(add_one_by_one, guids))
    # The end has waited for the last line.
    assert sorted(guids_in(path)) == sorted(guid for own in guids for guid in own)


class _Failing(AuditLog):
    """Does a part of its work, and then fails as a crash would."""

    def __init__(self, path: Path, do: Callable[[AuditLog, Any], object]) -> None:
        super().__init__(str(path))
        self._do = do

    def append(self, lines: Any) -> int:
        self._do(AuditLog(str(self._path)), lines)
        raise PixyProxyException("crashed")


@pytest.mark.parametrize("written", [0, 2, 3])
def test_a_line_that_is_written_and_not_deleted_is_written_again(
    audited: Database, log: AuditLog, path: Path, written: int
) -> None:
    guids = [new_guid() for _ in range(3)]
    add(audited, *guids)

    with pytest.raises(PixyProxyException):
        write_some(audited, _Failing(path, lambda log, lines: log.append(lines[:written])), outcome_of)
    assert pending(audited) == 3
    write_some(audited, log, outcome_of)

    lines = lines_in(path)
    assert [line["guid"] for line in lines] == guids[:written] + guids
    # The same line, by which a reader knows it.
    assert len({line["id"] for line in lines}) == 3
    assert len({json.dumps(line) for line in lines}) == 3


def test_lines_wait_for_a_log_that_cannot_be_written(
    audited: Database, log: AuditLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = path.parent.with_suffix(".away")
    path.parent.rename(away)
    guids = [new_guid() for _ in range(3)]
    with writing_audit_log(audited, log, outcome_of, interval=0.0, retry_interval=0.01):
        add(audited, *guids)
        wait_until(lambda: "audit log" in caplog.text, _TIMEOUT, "the warning")
        assert pending(audited) == 3
        away.rename(path.parent)
        wait_until(lambda: not pending(audited), _TIMEOUT, "the lines")
    assert guids_in(path) == guids
    assert caplog.text.count("The audit log cannot be written; its lines stay in the database.") == 1


def test_lines_are_left_to_others_where_the_log_fails_at_the_end(
    audited: Database, log: AuditLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(audited, "g")
    with writing_audit_log(audited, _Failing(path, lambda *_: None), outcome_of):
        pass
    assert "left to another server or the next start" in caplog.text
    assert pending(audited) == 1
