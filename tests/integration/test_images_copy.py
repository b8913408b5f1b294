"""`pixyproxy images copy`: from a folder into a real S3 server and back, cut off, and with what is damaged."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.bootstrap import open_current_database
from pixyproxy.core.fields import new_guid
from pixyproxy.core.models import ImageCreation, ImageDetailCreate
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.service.creation.storing import ImageStoring
from tests.contract.records import add_caller, add_image, detail_of
from tests.support import faulty_http as http
from tests.support.faulty_http import faulty_http
from tests.support.image_client import ImageClient
from tests.support.object_stores import RunningObjectStore, s3_env
from tests.support.rpc import TIMEOUT
from tests.support.servers import (
    Finished,
    Login,
    environment,
    prepare_database,
    run_command,
    running_server,
    settings_in,
)
from tests.support.unusual_files import UNUSUAL, put_in_place
from tests.support.waiting import wait_until

_LEASE = timedelta(seconds=1)


def file_of(folder: Path, guid: str) -> Path:
    """Where an image lies in a folder, and under a prefix."""
    return folder / guid[0:2] / guid[2:4] / guid


@dataclass
class Library:
    """Images in a database and a folder, and a prefix of an S3 bucket with nothing in it.

    Attributes:
        env: the environment of commands; its store is the folder.
        admin: who may see everything.
        folder: the folder.
        url: the prefix.
        copied: where the S3 server keeps what is under the prefix.
        images: the guids of the images, with their bytes.
    """

    env: dict[str, str]
    admin: Login
    folder: Path
    url: str
    copied: Path
    images: dict[str, bytes] = field(default_factory=dict)

    def add(self, count: int) -> list[str]:
        """Add images."""
        with open_current_database(settings_in(self.env)) as database:
            author = add_caller(database, f"user-{uuid.uuid4().hex}")
            guids = []
            for _ in range(count):
                data = os.urandom(20_000)
                image = add_image(database, author, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                path = file_of(self.folder, image.guid)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                self.images[image.guid] = data
                guids.append(image.guid)
        return guids

    def delete(self, guid: str) -> None:
        """Delete an image, as a server does."""
        with open_current_database(settings_in(self.env)) as database, database.transaction() as context:
            images = ImageRepository(context)
            images.delete(images.get_any(guid).id)
            context.commit()
        file_of(self.folder, guid).unlink()
        del self.images[guid]

    def copy(self, *options: str, **changes: str) -> Finished:
        """Copy from the folder into the bucket."""
        return run_command(
            "images", "copy", "--from", str(self.folder), "--to", self.url, *options, env=self.env | changes
        )

    def files(self, folder: Path) -> dict[str, bytes]:
        """The images in a folder, of which each must lie where it belongs."""
        paths = [path for path in folder.glob("??/??/*") if path.is_file()]
        assert all(path == file_of(folder, path.name) for path in paths)
        return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def library(s3_server: RunningObjectStore, tmp_path: Path) -> Library:
    env = environment(tmp_path, s3_server.env)
    admin = prepare_database(env)
    prefix = uuid.uuid4().hex
    assert s3_server.folder is not None
    return Library(env, admin, tmp_path / "images", f"{s3_server.url}/{prefix}", s3_server.folder / prefix)


def said(done: Finished) -> str:
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else done.stderr


def test_a_library_goes_into_a_bucket_and_back(library: Library, tmp_path: Path) -> None:
    library.add(150)

    done = library.copy()
    assert (done.status, said(done)) == (
        0,
        "150 copied, 0 verified, 0 known, 0 missing, 0 damaged, 0 deleted, 0 failed.",
    )
    assert library.files(library.copied) == library.files(library.folder) == library.images

    library.add(5)
    done = library.copy()
    assert (done.status, said(done)) == (
        0,
        "5 copied, 0 verified, 150 known, 0 missing, 0 damaged, 0 deleted, 0 failed.",
    )

    back = tmp_path / "back"
    done = run_command("images", "copy", "--from", library.url, "--to", str(back), env=library.env)
    assert (done.status, said(done)) == (
        0,
        "155 copied, 0 verified, 0 known, 0 missing, 0 damaged, 0 deleted, 0 failed.",
    )
    assert library.files(back) == library.images


def test_what_is_missing_or_damaged_is_named_and_left_alone(library: Library) -> None:
    missing, flipped, short, *_ = library.add(10)
    file_of(library.folder, missing).unlink()
    whole = library.images[flipped]
    file_of(library.folder, flipped).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    file_of(library.folder, short).write_bytes(whole[:100])

    for known in (0, 7):
        done = library.copy("--delete-source", PIXYPROXY_IMAGE_STORE="elsewhere") if known else library.copy()
        assert done.status == 1
        assert set(done.stdout.splitlines()[:-1]) == {f"missing: {missing}", f"damaged: {flipped}", f"damaged: {short}"}
    assert library.files(library.copied).keys() == library.images.keys() - {missing, flipped, short}
    assert library.files(library.folder).keys() == {flipped, short}

    file_of(library.folder, flipped).write_bytes(whole)
    assert library.copy().status == 1
    assert library.files(library.copied)[flipped] == whole


def test_what_is_no_regular_file_stops_no_other(library: Library) -> None:
    guids = library.add(10)
    unusual, good = guids[: len(UNUSUAL)], guids[len(UNUSUAL) :]
    for guid, kind in zip(unusual, UNUSUAL, strict=True):
        put_in_place(kind, file_of(library.folder, guid))

    done = library.copy()

    assert done.status == 1
    assert set(done.stdout.splitlines()[:-1]) == {f"missing: {guid}" for guid in unusual}
    assert library.files(library.copied).keys() == set(good)


def test_a_target_that_does_not_take_one_image_takes_the_others(library: Library, tmp_path: Path) -> None:
    refused, *others = library.add(5)
    deleted = library.add(1)[0]
    target = tmp_path / "target"
    arguments = ("images", "copy", "--from", str(library.folder), "--to", str(target))
    put_in_place("folder", file_of(target, refused))

    done = run_command(*arguments, env=library.env)

    assert done.status == 1
    assert done.stdout.splitlines()[:-1] == [f"failed: {refused}"]
    assert "1 failed" in said(done)
    assert library.files(target).keys() == {*others, deleted}
    library.delete(deleted)
    file_of(target, deleted).unlink()
    put_in_place("folder", file_of(target, deleted))
    assert set(run_command(*arguments, env=library.env).stdout.splitlines()[:-1]) == {
        f"failed: {refused}",
        f"failed: {deleted}",
    }


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_copy_that_is_killed_goes_on(library: Library, s3_server: RunningObjectStore, method: str) -> None:
    library.add(250)
    with faulty_http(s3_server.port) as network:
        # An image takes three requests, and a hundred images are written down at a time.
        network.will(http.be_silent, method, after=400)

        def is_silent() -> int:
            return sum(asked == method for asked, _ in network.asked[400:])

        command = [sys.executable, "-m", "pixyproxy", "images", "copy"]
        process = subprocess.Popen(
            [*command, "--from", str(library.folder), "--to", library.url], env=library.env | s3_env(network.port)
        )
        wait_until(lambda: is_silent() == 8, TIMEOUT, "all threads to be in the middle of an image")
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT)
    done_before = len(library.files(library.copied))
    assert 100 <= done_before < 250

    done = library.copy()

    assert done.status == 0
    counts = {outcome: int(count) for count, outcome in re.findall(r"(\d+) (\w+)", said(done))}
    assert counts["known"] == 100
    assert counts["copied"] == 250 - done_before
    assert library.files(library.copied) == library.images


def test_what_others_have_put_there_is_checked(library: Library) -> None:
    right, wrong, *_ = library.add(5)
    for guid, data in ((right, library.images[right]), (wrong, b"something else")):
        path = file_of(library.copied, guid)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)

    assert said(library.copy()) == "4 copied, 1 verified, 0 known, 0 missing, 0 damaged, 0 deleted, 0 failed."
    assert library.files(library.copied) == library.images


def test_copies_of_deleted_images_go(library: Library) -> None:
    deleted, *_ = library.add(5)
    library.copy()
    library.delete(deleted)

    assert library.copy().status == 0
    assert library.files(library.copied) == library.images


def test_the_source_is_deleted_only_when_asked_and_only_what_is_verified(library: Library) -> None:
    lost, *_ = library.add(5)
    library.copy()
    assert library.files(library.folder) == library.images
    refused = library.copy("--delete-source")
    assert refused.status == 1
    assert "PIXYPROXY_IMAGE_STORE still names that store" in refused.stderr
    assert library.files(library.folder) == library.images
    # Known to have been copied, and lost since.
    file_of(library.copied, lost).unlink()

    done = library.copy("--delete-source", PIXYPROXY_IMAGE_STORE=library.url)

    assert said(done) == "1 copied, 4 verified, 0 known, 0 missing, 0 damaged, 0 deleted, 0 failed."
    assert library.files(library.copied) == library.images
    assert library.files(library.folder) == {}


def test_a_source_that_does_not_delete_one_image_deletes_the_others(library: Library) -> None:
    stays, *others = library.add(5)
    assert library.copy().status == 0
    put_in_place("folder", file_of(library.folder, stays))

    done = library.copy("--delete-source", PIXYPROXY_IMAGE_STORE="elsewhere")

    assert done.status == 1
    assert done.stdout.splitlines()[:-1] == [f"failed: {stays}"]
    assert "5 verified" in said(done)
    assert not any(file_of(library.folder, guid).exists() for guid in others)


def test_nothing_is_deleted_from_a_store_that_is_the_target_under_another_name(library: Library) -> None:
    library.add(3)
    assert library.copy().status == 0
    # The folder is what the bucket's server keeps its objects in, as a mounted bucket would be.
    arguments = ("--from", str(library.copied), "--to", library.url, "--delete-source")

    done = run_command("images", "copy", *arguments, env=library.env | {"PIXYPROXY_IMAGE_STORE": library.url})

    assert done.status == 1
    assert "same store" in done.stderr
    assert library.files(library.copied) == library.images


def test_servers_go_on_meanwhile(library: Library, tmp_path: Path) -> None:
    """Copy first, switch, copy the rest: the way that the documentation gives."""
    with running_server(tmp_path, library.env) as server:
        client = ImageClient(server, library.admin)
        made = [client.create_public() for _ in range(3)]
        assert library.copy().status == 0
        made.append(client.create_public())
    with running_server(tmp_path, library.env | {"PIXYPROXY_IMAGE_STORE": library.url}) as server:
        client = ImageClient(server, library.admin)
        assert client.content(made[0].guid)[0].sha256 == made[0].sha256
        refused = client.refused(pb.GetImageContentRequest(guid=made[-1].guid))
        assert refused.code is grpc.StatusCode.DATA_LOSS
        made.append(client.create_public())

        assert library.copy().status == 0

        for image in made:
            assert client.content(image.guid)[0].sha256 == image.sha256


def test_an_image_that_is_not_committed_yet_goes_along(library: Library, tmp_path: Path) -> None:
    with open_current_database(settings_in(library.env)) as database:
        author = add_caller(database)
        with database.transaction() as context:
            generations = GenerationRepository(context)
            creation = ImageCreation(detail=ImageDetailCreate(prompt="not committed"))
            begun = generations.insert(creation, author.user_id, "ab" * 32, RequestContext())
            generations.submit(begun.id, "a worker that died", _LEASE)
            context.commit()
        detail = detail_of(author, guid=begun.image_guid, size_bytes=7, sha256=hashlib.sha256(b"content").hexdigest())
        ImageStoring(database, LocalImageStore(library.folder), lease=_LEASE).store(detail, b"content")

    assert library.copy().status == 0

    assert (library.copied / ".notes" / detail.guid).exists()
    with running_server(tmp_path, library.env | {"PIXYPROXY_IMAGE_STORE": library.url}) as server:
        client = ImageClient(server, library.admin)
        wait_until(lambda: client.guids() == [detail.guid], TIMEOUT, "the image to be committed")
        assert client.content(detail.guid)[1] == b"content"


def test_an_answer_that_was_kept_aside_goes_along_and_stays(library: Library) -> None:
    guid = new_guid()
    place = LocalImageStore(library.folder).write_aside(guid, b"answer")

    assert library.copy().status == 0
    assert library.copy("--delete-source", PIXYPROXY_IMAGE_STORE=library.url).status == 0

    assert (library.copied / ".aside" / guid).read_bytes() == b"answer"
    assert Path(place).read_bytes() == b"answer"


@pytest.mark.parametrize(
    ("source", "target", "word"),
    [
        ("{folder}", "{folder}/", "same store"),
        ("{folder}", "{folder}/new", "--to is a folder within --from"),
        ("{folder}-not-there", "{url}", "no folder"),
        ("{folder}", "s3://key:secret@bucket", "no credentials"),
        ("{folder}", "s3://another-bucket", "cannot be used"),
        ("{folder}", "ftp://host", "must be"),
    ],
)
def test_what_cannot_be_copied_is_said(library: Library, source: str, target: str, word: str) -> None:
    library.add(1)
    names = {"folder": str(library.folder), "url": library.url}

    done = run_command(
        "images", "copy", "--from", source.format(**names), "--to", target.format(**names), env=library.env
    )

    assert done.status == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert library.files(library.folder) == library.images
