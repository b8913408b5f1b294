"""The server that is fuzzed, the people who call it, and what is known of its images.

What is known is kept up with every answer, so that each further answer can be checked against it.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import UserClass, Visibility
from tests.support.generation_client import GenerationClient, generation_stub
from tests.support.image_client import ImageClient, without_placeholder
from tests.support.servers import ANYBODY, Login, Metadata, RunningServer, running_server
from tests.support.stored_images import store_image

LIMITS: Mapping[str, int] = {"images_per_day": 100_000, "generations_at_once": 1000}
"""The quotas of everybody, which are never used up."""
# Small images take no time; and inputs with wrong credentials must not lock out those with right ones.
SETTINGS: Mapping[str, str] = {
    "PIXYPROXY_SIZE": "64x64",
    "PIXYPROXY_MAX_FAILED_SIGN_INS": "10000",
    **{f"PIXYPROXY_USER_{name.upper()}": str(limit) for name, limit in LIMITS.items()},
}

PROMPTS = (
    "a lighthouse in a storm",
    "Ein Straßenfest bei Nacht",
    "雪山日出",
    "ภูเขาหิมะ",
    "منارة في العاصفة",
    "👩‍👩‍👧‍👦 at the sea 🌊",
    "Crème brûlée\nwith two\tlines",
    "%_'; DROP TABLE images; --",
)
TAGS = ("sea", "Sea", "café", "cafe\u0301", "🌊", "a b", "%", "\u202egnp")
FILENAMES = ("lighthouse.png", "Ärger.PNG", "a%b_c.png", "图片.webp", "\u202egnp.exe")
_PEOPLE = ("ann", "bob")
_IMAGES_EACH = 8


# A PNG of one pixel; what follows it is ignored where it is decoded.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class Person:
    """Who makes a call.

    Attributes:
        name: the username; empty for a caller without credentials.
        metadata: what signs the call in.
        is_admin: whether it may do everything.
        is_refused: whether the credentials are none that the server takes.
    """

    name: str = ""
    metadata: Metadata = ANYBODY
    is_admin: bool = False
    is_refused: bool = False

    def may_see(self, image: pb.ImageDetail) -> bool:
        """Whether an image exists for this caller."""
        return image.visibility == pb.VISIBILITY_PUBLIC or self.may_write(image)

    def may_write(self, image: pb.ImageDetail) -> bool:
        """Whether the caller may change an image."""
        return self.is_admin or (self.name != "" and image.author == self.name)


NOBODY = Person()


@dataclass(frozen=True)
class GivenToken:
    """A page token that the server gave, and to which question."""

    token: str
    person: Person
    request: pb.ListImagesRequest
    last: pb.ImageDetail


@dataclass
class World:
    """The server, its users, and its images.

    Attributes:
        server: the server.
        people: who can sign in; the last one is an admin.
        images: all images, as they were last seen, by guid.
        guids: the guids of images that there are, that were deleted, and that there never were.
        tokens: page tokens that the server gave.
        generations: all generations that were ever shown, all of which have ended, by guid.
        generation_tokens: for each page token of generations, who was given it first.
        spent_ids: for each person, by name, a request id that is used for a request that nobody repeats.
        creates_left: how many more images may really be made.
    """

    server: RunningServer
    people: tuple[Person, ...]
    images: dict[str, pb.ImageDetail] = field(default_factory=dict)
    guids: list[str] = field(default_factory=list)
    tokens: list[GivenToken] = field(default_factory=list)
    generations: dict[str, gpb.Generation] = field(default_factory=dict)
    generation_tokens: dict[str, str] = field(default_factory=dict)
    spent_ids: dict[str, str] = field(default_factory=dict)
    creates_left: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def admin(self) -> Person:
        """The one who sees everything."""
        return self.people[-1]

    def pick_guid(self, number: int) -> str:
        """One of the known guids."""
        return self.guids[number % len(self.guids)]

    def pick_generation(self, number: int) -> str:
        """The guid of one of the known generations, or of an image."""
        known = [*self.generations, self.guids[0]]
        return known[number % len(known)]

    def generation_of(self, request: Any, person: Person) -> gpb.Generation | None:
        """The generation that a request names, where that is known and the caller may see it."""
        if request_id := getattr(request, "request_id", "").lower():
            mine = (one for one in self.generations.values() if one.author == person.name)
            return next((one for one in mine if one.request_id == request_id), None)
        generation = self.generations.get(getattr(request, "guid", "").lower())
        is_seen = generation is not None and (person.is_admin or generation.author == person.name)
        return generation if is_seen else None

    def note_generation(self, generation: gpb.Generation) -> None:
        """Remember a generation that has ended."""
        self.generations[generation.guid] = generation

    def watch(self, guid: str) -> gpb.Generation:
        """Watch a generation to its end as the one who sees everything."""
        call = generation_stub(self.server.channel).WatchGeneration(
            gpb.WatchGenerationRequest(guid=guid), metadata=self.admin.metadata, timeout=30
        )
        shown: list[gpb.Generation] = [event.generation for event in call if event.HasField("generation")]
        return shown[-1]

    def note_token(self, given: GivenToken) -> None:
        """Remember a page token; only the newest few are of use."""
        self.tokens = [*self.tokens[-63:], given]

    def note_image(self, image: pb.ImageDetail) -> None:
        """Remember an image as it is now, but for the images that it was made from, which may be deleted or hidden."""
        if image.guid not in self.images:
            self.guids.append(image.guid)
        self.images[image.guid] = without_placeholder(image)
        self.images[image.guid].ClearField("source_guids")

    def note_deleted(self, guid: str) -> None:
        """Forget an image, and put another one of its author in its place."""
        name = self.images.pop(guid).author
        self.add_image(next(person for person in self.people if person.name == name))

    def add_image(self, author: Person) -> None:
        """Put an image into the database and the store."""
        number = next(self._numbers)
        stored = store_image(
            self.server,
            Login(author.name, ""),
            PICTURE + f"the bytes of image {number}".encode() * (1 + number * 997 % 9000),
            prompt=PROMPTS[number % len(PROMPTS)],
            tags=(TAGS[number % len(TAGS)], TAGS[(number + 3) % len(TAGS)]),
            filename=FILENAMES[number % len(FILENAMES)],
            visibility=Visibility.PUBLIC if number % 3 else Visibility.PRIVATE,
        )
        self.note_image(self.get(stored.guid))

    def get(self, guid: str) -> pb.ImageDetail:
        """Get an image as the one who sees everything."""
        request = pb.GetImageRequest(guid=guid)
        answer = self.server.images.GetImage(request, metadata=self.admin.metadata, timeout=30)
        return without_placeholder(answer.image)


@contextlib.contextmanager
def open_world(folder: Path, *, creates: int = 0) -> Iterator[World]:
    """Run a server with some users and images; at most ``creates`` further images are made by fuzzing."""
    with running_server(folder, SETTINGS, makes_first_user=True) as server:
        logins = [server.new_login(username=name) for name in _PEOPLE]
        admin = server.new_login(UserClass.ADMIN, username="root")
        people = [Person(login.username, login.metadata) for login in logins]
        world = World(server, (*people, Person(admin.username, admin.metadata, is_admin=True)), creates_left=creates)
        world.guids.extend(str(uuid.UUID(int=number)) for number in range(4))
        for person in people * _IMAGES_EACH:
            world.add_image(person)
        for login in (*logins, admin):
            spent_id = str(uuid.uuid4())
            world.note_image(ImageClient(server, login).create("the one under a request id", request_id=spent_id))
            world.spent_ids[login.username] = spent_id
            world.note_generation(GenerationClient(server, login).get(request_id=spent_id))
        yield world
