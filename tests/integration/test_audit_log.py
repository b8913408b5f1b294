"""The audit log: a line for every change and every generation, and nothing in it that is private."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import UserClass
from tests.integration.conftest import asking
from tests.support.generation_client import CANCELLED, FAILED, SUBMITTED, SUCCEEDED, GenerationClient
from tests.support.image_client import ImageClient
from tests.support.image_files import encode
from tests.support.metrics import METRICS_ON
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, refusal
from tests.support.servers import Login, RunningServer, environment, run_command, running_server
from tests.support.waiting import wait_until

_DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
_SECRETS = ("secret-prompt", "secret-tag", "secret-name", "secret-password")


@pytest.fixture(scope="module")
def audited(stand_in: RunningStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with an audit log and metrics, which submits one request at a time."""
    folder = tmp_path_factory.mktemp("audited")
    settings = {"PIXYPROXY_AUDIT_LOG": str(folder / "audit.jsonl"), "PIXYPROXY_MAX_GENERATIONS": "1"}
    with running_server(folder, asking(stand_in) | METRICS_ON | settings) as running:
        yield running


@pytest.fixture
def ann(audited: RunningServer) -> Login:
    return audited.new_login()


def lines_of(server: RunningServer) -> list[dict[str, Any]]:
    """The lines so far, those that were renamed away included; one that is being written is left out."""
    texts = [path.read_text(encoding="ascii") for path in sorted(server.folder.glob("audit.jsonl*"), reverse=True)]
    return [json.loads(line) for text in texts for line in text.split("\n")[:-1]]


def lines_for(server: RunningServer, *guids: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait for so many lines for images or generations, and return them without what differs each time."""

    def find() -> list[dict[str, Any]] | None:
        found = [line for line in lines_of(server) if {line["guid"], line.get("generation_guid")} & {*guids}]
        return found if len(found) >= count else None

    found = wait_until(find, TIMEOUT, "the lines")
    assert len({line.pop("id") for line in found}) == count == len(found)
    for line in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
        assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(line.pop("time")) < timedelta(minutes=5)
    return found


def method_of(server: RunningServer, line: dict[str, Any]) -> str:
    """Take the call id from a line, and return the method that the log has for it."""
    found = re.search(r"\[(\w+):\d+\] REQUEST START", server.wait_for_end_of(line.pop("call_id"))[0])
    assert found is not None
    return found[1]


# --- Images ----------------------------------------------------------------------------------------------------------


def test_an_image_has_a_line_for_each_change(audited: RunningServer, ann: Login) -> None:
    root = audited.new_login(UserClass.ADMIN)
    image = ImageClient(audited, ann).create("secret-prompt", tags=["secret-tag"], filename="secret-name.png")
    ImageClient(audited, ann).update(image.guid, ["filename", "tags"], filename="secret-name", tags=["secret-tag-2"])
    ImageClient(audited, root).update(image.guid, ["visibility"], visibility=pb.VISIBILITY_PUBLIC)
    ImageClient(audited, root).delete(image.guid)

    created, *changes = lines_for(audited, image.guid, count=4)

    assert image.HasField("cost")
    assert method_of(audited, created) == "CreateImage"
    assert re.fullmatch(r"[0-9a-f-]{36}", created.pop("generation_guid"))
    assert created == {
        "action": "image.created",
        "actor": ann.username,
        "author": ann.username,
        "guid": image.guid,
        "cost": {"nano_usd": image.cost.nano_usd, "price_list": image.cost.price_list},
        "outcome": "OK",
    }
    assert len({change["call_id"] for change in changes}) == 3
    assert [method_of(audited, change) for change in changes] == ["UpdateImage", "UpdateImage", "DeleteImage"]
    common = {"author": ann.username, "guid": image.guid, "outcome": "OK"}
    assert changes == [
        {"action": "image.updated", "actor": ann.username, "fields": ["filename", "tags"], **common},
        {"action": "image.updated", "actor": root.username, "fields": ["visibility"], **common},
        {"action": "image.deleted", "actor": root.username, **common},
    ]


def test_an_import_has_one_line_however_often_it_is_repeated(audited: RunningServer, ann: Login) -> None:
    client, data = ImageClient(audited, ann), encode("png")
    request_id = "6ff13d4e-3a0f-4f3a-8f7e-0e1f0a6b2a11"
    info: dict[str, Any] = {"prompt": "secret-prompt", "tags": ["secret-tag"], "filename": "secret-name.png"}
    image = client.import_image(data, request_id=request_id, **info)
    assert client.import_image(data, request_id=request_id, **info) == image
    client.delete(image.guid)

    imported, deleted = lines_for(audited, image.guid, count=2)

    assert (imported["action"], imported["actor"], imported["author"]) == ("image.imported", ann.username, ann.username)
    assert imported["outcome"] == "OK"
    assert "cost" not in imported
    assert deleted["action"] == "image.deleted"


def test_what_is_refused_has_no_line(audited: RunningServer, ann: Login) -> None:
    image = ImageClient(audited, ann).create()
    other = audited.new_login()
    client = ImageClient(audited, other)
    assert refusal(client.stub.DeleteImage, pb.DeleteImageRequest(guid=image.guid), client.metadata).reason
    ImageClient(audited, ann).delete(image.guid)
    lines_for(audited, image.guid, count=2)


# --- Generations -----------------------------------------------------------------------------------------------------


def test_a_generation_has_a_line_for_its_end(audited: RunningServer, ann: Login) -> None:
    client = GenerationClient(audited, ann)
    made = client.wait_for(client.start("secret-prompt").guid, SUCCEEDED)
    refused = client.start("secret-prompt [[fault:moderation_blocked]]")
    client.wait_for(refused.guid, FAILED)

    [created] = lines_for(audited, made.guid)
    [failed] = lines_for(audited, refused.guid)

    assert (created["action"], created["guid"]) == ("image.created", made.image_guid)
    assert method_of(audited, failed) == "CreateGeneration"
    assert failed == {
        "action": "generation.failed",
        "actor": ann.username,
        "author": ann.username,
        "guid": refused.guid,
        "outcome": "FAILED_PRECONDITION",
        "reason": "PROMPT_REFUSED",
    }


def test_an_unknown_outcome_has_a_line(audited: RunningServer, ann: Login) -> None:
    client = GenerationClient(audited, ann)
    request_id = "0d8bd0b6-3f63-4a7c-9f6c-5e6b0f4d4b52"
    with pytest.raises(grpc.RpcError):
        ImageClient(audited, ann).create("secret-prompt [[fault:drop]]", request_id=request_id)
    generation = client.get(request_id=request_id)

    [line] = lines_for(audited, generation.guid)

    assert (line["action"], line["actor"]) == ("generation.outcome_unknown", ann.username)
    assert (line["outcome"], line["reason"]) == (generation.error.code, generation.error.reason)


def test_a_cancellation_has_a_line_with_who_cancelled(
    audited: RunningServer, ann: Login, stand_in: RunningStandIn
) -> None:
    root = audited.new_login(UserClass.ADMIN)
    client = GenerationClient(audited, ann)
    busy = client.start("secret-prompt, busy [[fault:hold]]")
    client.wait_for(busy.guid, SUBMITTED)
    queued = client.start("secret-prompt, queued")
    assert GenerationClient(audited, root).cancel(queued.guid).state == CANCELLED
    stand_in.release("secret-prompt, busy [[fault:hold]]")

    [line] = lines_for(audited, queued.guid)

    assert method_of(audited, line) == "CancelGeneration"
    assert line == {
        "action": "generation.cancelled",
        "actor": root.username,
        "author": ann.username,
        "guid": queued.guid,
        "outcome": "CANCELLED",
        "reason": "GENERATION_CANCELLED",
    }
    client.wait_for(busy.guid, SUCCEEDED)


# --- Users, and what is private --------------------------------------------------------------------------------------


def test_commands_for_users_have_lines(audited: RunningServer) -> None:
    for arguments, text in (
        (["add", "zoe", "--class", "admin", "--password-stdin"], "secret-password-1"),
        (["passwd", "zoe", "--password-stdin"], "secret-password-2"),
        (["limit", "zoe", "--images-per-day", "5"], ""),
        (["remove", "zoe"], ""),
    ):
        done = run_command("user", *arguments, env=audited.env, text=text)
        assert done.status == 0, done.stderr

    guid = wait_until(
        lambda: next((line["guid"] for line in lines_of(audited) if line.get("username") == "zoe"), None),
        TIMEOUT,
        "the line",
    )
    common = {"actor": "system:command", "username": "zoe", "guid": guid, "outcome": "OK"}
    limits = {"nano_usd_per_day": None, "images_per_day": 5, "generations_at_once": None}
    assert lines_for(audited, guid, count=4) == [
        {"action": "user.added", "class_key": "admin", **common},
        {"action": "user.password_changed", **common},
        {"action": "user.limits_changed", "limits": limits, **common},
        {"action": "user.removed", **common},
    ]


def test_nothing_private_is_in_any_line(audited: RunningServer, ann: Login) -> None:
    """The tests of this module have used each of these words for what is private."""
    image = ImageClient(audited, ann).create("secret-prompt", tags=["secret-tag"], filename="secret-name.png")
    lines_for(audited, image.guid)
    text = (audited.folder / "audit.jsonl").read_text(encoding="ascii")
    assert [secret for secret in (*_SECRETS, ann.password) if secret in text] == []
    assert stat.S_IMODE((audited.folder / "audit.jsonl").stat().st_mode) == 0o600


def test_the_documented_lines_are_like_the_real_ones(audited: RunningServer, ann: Login) -> None:
    text = _DOCUMENT.read_text(encoding="utf-8").partition("\n## Audit log\n")[2].partition("\n## ")[0]
    examples = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", text, re.MULTILINE)]
    names = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)))
    client = GenerationClient(audited, ann)
    made = client.wait_for(client.start("a castle").guid, SUCCEEDED)
    failed = client.start("a castle [[fault:moderation_blocked]]")
    lines_for(audited, made.guid)
    lines_for(audited, failed.guid)

    by_action = {line["action"]: line for line in lines_of(audited)}

    assert [example["action"] for example in examples] == ["image.created", "generation.failed"]
    for example in examples:
        real = by_action[example["action"]]
        assert list(example) == list(real)
        assert [type(value) for value in example.values()] == [type(value) for value in real.values()]
    assert {name for line in lines_of(audited) for name in line} <= {*names}
    assert {action for action in by_action if f"`{action}`" not in text} == set()


# --- The file --------------------------------------------------------------------------------------------------------


def test_the_file_may_be_renamed(audited: RunningServer, ann: Login) -> None:
    path = audited.folder / "audit.jsonl"
    first = ImageClient(audited, ann).create()
    lines_for(audited, first.guid)
    path.rename(audited.folder / "audit.jsonl.1")
    second = ImageClient(audited, ann).create()
    lines_for(audited, second.guid)
    assert second.guid in path.read_text()
    assert first.guid not in path.read_text()


def test_lines_survive_a_kill_and_a_stop_writes_all_of_them(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_AUDIT_LOG": str(tmp_path / "audit.jsonl"), "PIXYPROXY_WORKERS": "2"}
    with running_server(tmp_path, settings) as server:
        # The log cannot be written, so that the lines are in the database when the server dies.
        (tmp_path / "audit.jsonl").unlink()
        (tmp_path / "audit.jsonl").mkdir()
        killed = [ImageClient(server, server.admin).create().guid for _ in range(3)]
        wait_until(lambda: "The audit log cannot be written" in server.log, TIMEOUT, "the warning")
        server.kill()
    (tmp_path / "audit.jsonl").rmdir()
    assert run_command("user", "add", "zoe", "--password-stdin", env=server.env, text="a password").status == 0
    with running_server(tmp_path, settings) as server:
        stopped = [ImageClient(server, server.admin).create().guid for _ in range(3)]
        assert server.stop() == 0
    lines = lines_of(server)
    assert [line["guid"] for line in lines if line["action"] == "image.created"] == killed + stopped
    assert [line["action"] for line in lines].count("user.added") == 1


def test_lines_go_to_standard_output(tmp_path: Path) -> None:
    with running_server(tmp_path, {"PIXYPROXY_AUDIT_LOG": "-", "PIXYPROXY_WORKERS": "2"}) as server:
        image = ImageClient(server, server.admin).create()
        wait_until(lambda: image.guid in server.output, TIMEOUT, "the line")
        lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    assert [(line["action"], line["guid"]) for line in lines] == [("image.created", image.guid)]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing/audit.jsonl", "there is no folder missing for the audit log."),
        ("images", "images cannot be written: Is a directory."),
        ("x" * 300, "cannot be written: File name too long."),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, workers: str, name: str, problem: str
) -> None:
    (tmp_path / "images").mkdir()
    env = environment(tmp_path, {"PIXYPROXY_AUDIT_LOG": name, "PIXYPROXY_WORKERS": workers})
    done = run_command("serve", env=env, cwd=tmp_path)
    assert done.status == 1
    assert "pixyproxy: PIXYPROXY_AUDIT_LOG: " in done.stderr
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening on" not in done.stdout
