"""docs/clients.md says what is so, and its examples work."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from google.rpc import code_pb2
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_download_service_pb2 as dpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.core import exceptions as exc
from pixyproxy.resource.statuses import RULES, status_of
from tests.clients.projects import DOCUMENT, PROJECTS, SERVICE_CONFIG, Project, run_example
from tests.clients.test_clients import each_client, signed_in
from tests.support.image_client import ImageClient
from tests.support.servers import RunningServer

_TEXT = DOCUMENT.read_text()
_ALWAYS = {"ErrorInfo", "RequestInfo"}


@each_client
def test_the_example_creates_and_saves(project: Project, server: RunningServer, tmp_path: Path) -> None:
    author = server.new_login()

    said = run_example(project, tmp_path, "example", env=signed_in(server.address, author))

    (image,) = ImageClient(server, author).page(author=author.username).images
    assert image.prompt == "A lighthouse in a storm"
    assert said.endswith(f"saved {image.filename}\n")
    assert hashlib.sha256((tmp_path / image.filename).read_bytes()).hexdigest() == image.sha256


@each_client
def test_the_example_watches_a_generation(project: Project, server: RunningServer, tmp_path: Path) -> None:
    author = server.new_login()

    said = run_example(project, tmp_path, "watching", env=signed_in(server.address, author))

    (image,) = ImageClient(server, author).page(author=author.username).images
    assert image.prompt == "A lighthouse in a storm"
    assert said.endswith(f"image {image.guid}\n")


def test_the_table_of_files_is_what_the_projects_are_made_from() -> None:
    for project in PROJECTS:
        assert f"| `{project.service_config}` |" in _TEXT
        assert all(f"| `{path}` |" in _TEXT for path in project.examples)


def test_what_grpc_sends_again_is_told() -> None:
    section = _TEXT[_TEXT.index("\n## Sending again\n") :]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (yes|no)\b.*\|$", section, flags=re.MULTILINE)
    told = {name: answer == "yes" for names, answer in rows for name in re.findall(r"\w+", names)}

    repeated = {
        name["method"] for config in json.loads(SERVICE_CONFIG.read_text())["methodConfig"] for name in config["name"]
    }
    services = [service for file in (pb, dpb, gpb, upb) for service in file.DESCRIPTOR.services_by_name.values()]
    methods = [method.name for service in services for method in service.methods]
    assert told == {method: method in repeated for method in methods}


def test_every_error_is_listed_with_its_details() -> None:
    section = _TEXT[_TEXT.index("\n## Errors\n") :]
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (.*?) ?\| (no|later) \| (.+) \|$", section, re.MULTILINE)
    listed = [
        (code, reason, tuple(re.findall(r"`(\w+)`(?!, sometimes)", details))) for code, reason, details, *_ in rows
    ]

    assert len(listed) == len(set(listed))
    assert set(listed) == {_told(kind) for kind in RULES}


def test_what_may_be_sent_again_is_what_says_when_or_passes() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (.*?) ?\| (no|later) \|", _TEXT, re.MULTILINE)
    passing = {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"}

    assert len(rows) > 0
    for code, reason, details, again in rows:
        assert (again == "later") == ("RetryInfo" in details or code in passing), reason


def _told(kind: type[BaseException]) -> tuple[str, str, tuple[str, ...]]:
    """The code, the reason and the further details that a program is given for an exception."""
    error = _made(kind)
    names = (detail.TypeName().rpartition(".")[2] for detail in status_of(error, "").details)
    return (
        code_pb2.Code.Name(RULES[kind].code),
        RULES[kind].reason,
        tuple(name for name in names if name not in _ALWAYS),
    )


def _made(kind: type[BaseException]) -> BaseException:
    if kind is exc.InvalidFieldError:
        return exc.InvalidFieldError.of("guid", "is wrong")
    if kind is exc.ProviderRequestInvalidError:
        return exc.ProviderRequestInvalidError("options.size", "is wrong")
    if kind in (exc.RequestIdReusedError, exc.CredentialsMissingError):
        return kind()
    if kind is exc.OffsetOutOfRangeError:
        return exc.OffsetOutOfRangeError(9, 5)
    if kind is exc.QuotaExhaustedError:
        return exc.QuotaExhaustedError("message", quota="images_per_day", author="ann", retry_after=60.0)
    return kind("message")
