"""One input, the bytes of its messages, to one method; and what every answer to it must be."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.core.search_terms import index_terms, query_terms
from pixyproxy.core.text import caseless_key, exact_key
from tests.fuzz.answers import CoreStatus, UnexpectedAnswerError, read_refusal
from tests.fuzz.world import LIMITS, NOBODY, GivenToken, Person, World
from tests.support.image_client import without_placeholder
from tests.support.rpc import Refusal, call_id_of

METHODS: Mapping[str, tuple[str, type[Any], type[Any]]] = {
    method.name: (
        f"/{service.full_name}/{method.name}",
        getattr(messages, method.input_type.name),
        getattr(messages, method.output_type.name),
    )
    for messages in (pb, gpb, upb)
    for service in messages.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""The path, the request and the response of each method, by its name."""
_WRITING = ("CreateImage", "UpdateImage", "DeleteImage")
_OF_GENERATIONS = tuple(method.name for method in gpb.DESCRIPTOR.services_by_name["GenerationService"].methods)
_CREATING = ("CreateImage", "CreateGeneration", "ImportImage")
_STREAMS = ("GetImageContent", "WatchGeneration")
_SIGNED_IN = (*_WRITING, "ImportImage", *_OF_GENERATIONS, "SummarizeUsage", "GetQuota")
_TIMEOUT = 30.0
_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# From here on gRPC may refuse metadata; see CORE_STATUSES.
_SAFE_METADATA_BYTES = 7 * 1024
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_SHOWN = 2000
_SECRETS = ("Traceback", "sqlite3", "site-packages")

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        method: the name of a method.
        data: the bytes of the request, a message or not.
        person: who calls.
        metadata: what is sent along beside the credentials.
        more: the bytes of further messages, for ``ImportImage`` alone.
    """

    method: str
    data: bytes
    person: Person = NOBODY
    metadata: Metadata = ()
    more: tuple[bytes, ...] = ()

    @classmethod
    def of(
        cls,
        request: Message | Sequence[Message],
        person: Person = NOBODY,
        metadata: Metadata = (),
    ) -> Case:
        """The case that a request message makes, or several."""
        first, *more = [request] if isinstance(request, Message) else request
        data, *others = (message.SerializeToString() for message in (first, *more))
        return cls(type(first).__name__.removesuffix("Request"), data, person, metadata, tuple(others))

    @property
    def request(self) -> Any | None:
        """The first request message, or None where the bytes are none."""
        return self._decoded(self.data)

    @property
    def rest(self) -> list[Any | None]:
        """The further messages, with None where the bytes are none."""
        return [self._decoded(data) for data in self.more]

    def _decoded(self, data: bytes) -> Any | None:
        try:
            return METHODS[self.method][1].FromString(data)
        except DecodeError:
            return None


@dataclass
class Checker:
    """Sends cases to a server and checks every answer."""

    world: World
    statuses: Counter[str] = field(default_factory=Counter)
    _calls: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def check(self, case: Case) -> None:
        """Send a case, check its answer, and remember what it tells.

        Raises:
            AssertionError: the answer is not as it must be.
        """
        case = self._affordable(case)
        try:
            self._check_answer(case, self._send(case))
        except AssertionError as error:
            error.add_note(f"{str(case)[:_SHOWN]}\n{str(case.request)[:_SHOWN]}")
            raise

    def _check_answer(self, case: Case, answer: list[Any] | Refusal | CoreStatus) -> None:
        if isinstance(answer, CoreStatus):
            self.statuses[f"core:{answer.code.name}"] += 1
            _require(_is_beyond_grpc(case), f"{answer} for what gRPC should let through")
        elif isinstance(answer, Refusal):
            self.statuses[answer.reason] += 1
            self._check_refusal(case, answer)
        else:
            self.statuses["OK"] += 1
            self._check_ok(case, answer)

    # --- Sending -------------------------------------------------------------------------------------------------

    def _affordable(self, case: Case) -> Case:
        """Keep a case from making an image where enough are made: under a spent request id it makes none."""
        if case.method not in _CREATING or case.request is None or case.person.name not in self.world.spent_ids:
            return case
        if self.world.creates_left > 0:
            return case
        request_id = self.world.spent_ids[case.person.name]
        image = pb.CreateImageRequest(request_id=request_id)
        spent: Message = {
            "CreateImage": image,
            "CreateGeneration": gpb.CreateGenerationRequest(request=image),
            "ImportImage": pb.ImportImageRequest(info=pb.ImportImageInfo(request_id=request_id)),
        }[case.method]
        # Of a field that comes twice, the last one counts.
        return replace(case, data=case.data + spent.SerializeToString())

    def _send(self, case: Case) -> list[Any] | Refusal | CoreStatus:
        requests = iter((case.data, *case.more)) if case.method == "ImportImage" else case.data
        call = self._call(case.method)(requests, metadata=(*case.person.metadata, *case.metadata), timeout=_TIMEOUT)
        try:
            responses = list(call)
        except grpc.RpcError as error:
            return read_refusal(error)
        call_id_of(call)
        return responses

    def _call(self, method: str) -> Callable[..., Any]:
        """A method that sends bytes as they are; on the wire, one answer is a stream of one."""
        if method not in self._calls:
            path, _, response = METHODS[method]
            channel = self.world.server.channel
            make_call = channel.stream_stream if method == "ImportImage" else channel.unary_stream
            self._calls[method] = make_call(path, request_serializer=None, response_deserializer=response.FromString)
        return self._calls[method]

    # --- Refusals ------------------------------------------------------------------------------------------------

    def _check_refusal(self, case: Case, refused: Refusal) -> None:
        secrets = (
            *_SECRETS,
            str(self.world.server.folder),
            *(value for _, value in case.person.metadata if len(value) > 20),
        )
        _require(not any(secret in refused.message for secret in secrets), f"a secret in {refused.message!r}")
        is_signed_in = not case.person.is_refused and (case.person.name or case.method not in _SIGNED_IN)
        if not is_signed_in:
            expected = "CREDENTIALS_INVALID" if case.person.is_refused else "CREDENTIALS_MISSING"
            _require(refused.reason == expected, f"{refused.reason} in place of {expected}")
        elif case.request is None:
            _require(refused.reason == "MALFORMED_REQUEST", f"{refused.reason} for what is no message")
        elif refused.reason == "MALFORMED_REQUEST":
            _require(None in case.rest, "MALFORMED_REQUEST for messages")
        else:
            self._check_refused_request(case, case.request, refused)

    def _check_refused_request(self, case: Case, request: Any, refused: Refusal) -> None:
        guid = getattr(request, "guid", "").lower()
        image = self.world.images.get(guid)
        is_seen = self._is_seen(case.person, guid)
        if refused.reason == "INVALID_FIELD":
            _require(bool(refused.violations), "INVALID_FIELD that names no field")
            unknown = [path for path in refused.violations if not _has_field(request, path)]
            _require(not unknown, f"fields that there are not: {unknown}")
        elif case.method == "ImportImage":
            is_known = refused.reason == "IMAGE_NOT_FOUND"  # The image of its request id is deleted.
            _require(is_known or refused.reason == "REQUEST_ID_REUSED", f"why {refused.reason}?")
            _require(request.info.request_id != "", f"{refused.reason} without a request id")
        elif refused.reason == "IMAGE_NOT_FOUND" and case.method in ("CreateImage", "CreateGeneration"):
            creation = request if case.method == "CreateImage" else request.request
            sources = [*creation.inputs, *([creation.mask] if creation.HasField("mask") else [])]
            is_hidden = any(not self._is_seen(case.person, source.guid) for source in sources)
            _require(creation.request_id != "" or is_hidden, "NOT_FOUND for nothing")
        elif case.method in _OF_GENERATIONS:
            self._check_refused_generation(case, request, refused)
        elif refused.reason == "IMAGE_NOT_FOUND":
            _require(case.method != "ListImages", "NOT_FOUND for a list")
            _require(not is_seen, f"{guid} is there, and the caller may see it")
            _require(refused.resource is not None and refused.resource.resource_name == guid, "another ResourceInfo")
        elif refused.reason == "NOT_YOURS":
            _require(case.method in _WRITING and image is not None and is_seen, "NOT_YOURS tells of what is not seen")
            _require(image is not None and not case.person.may_write(image), "NOT_YOURS for one's own image")
        elif refused.reason == "OFFSET_OUT_OF_RANGE":
            # A rendition may have any size.
            size = 0 if image is None or request.rendition else image.size_bytes
            _require(image is not None and is_seen and request.read_offset > size, "it is in range")
        else:
            _require(refused.reason == "REQUEST_ID_REUSED" and request.request_id != "", f"why {refused.reason}?")

    def _is_seen(self, person: Person, guid: str) -> bool:
        image = self.world.images.get(guid.lower())
        return image is not None and person.may_see(image)

    def _check_refused_generation(self, case: Case, request: Any, refused: Refusal) -> None:
        generation = self.world.generation_of(request, case.person)
        if refused.reason == "GENERATION_NOT_FOUND":
            _require(case.method != "CreateGeneration" and generation is None, "the generation is there")
            named = getattr(request, "guid", "") or getattr(request, "request_id", "")
            _require(refused.resource is not None and refused.resource.resource_name == named.lower(), "another name")
        elif refused.reason == "ALREADY_SUBMITTED":
            _require(case.method == "CancelGeneration" and generation is not None, "ALREADY_SUBMITTED tells of others'")
        else:
            is_reused = refused.reason == "REQUEST_ID_REUSED" and case.method == "CreateGeneration"
            _require(is_reused and request.request.request_id != "", f"why {refused.reason}?")

    # --- Answers -------------------------------------------------------------------------------------------------

    def _check_ok(self, case: Case, responses: list[Any]) -> None:
        request = [case.request, *case.rest] if case.method == "ImportImage" else case.request
        _require(case.request is not None and None not in case.rest, "an answer to what is no message")
        _require(not case.person.is_refused, "an answer in spite of wrong credentials")
        _require(case.person.name != "" or case.method not in _SIGNED_IN, "an answer without credentials")
        checks: dict[str, Callable[[Person, Any, Any], object]] = {
            "CreateImage": self._check_created,
            "GetImage": self._check_got,
            "ListImages": self._check_listed,
            "GetImageContent": self._check_content,
            "BatchGetThumbnails": self._check_thumbnails,
            "UpdateImage": self._check_updated,
            "DeleteImage": self._check_deleted,
            "CreateGeneration": self._check_started,
            "GetGeneration": self._check_got_generation,
            "ListGenerations": self._check_listed_generations,
            "WatchGeneration": self._check_watched,
            "ImportImage": self._check_imported,
            "SummarizeUsage": self._check_summarized,
            "GetQuota": self._check_quotas,
        }
        for response in responses:
            self._check_images_in(response, case.person)
        _require(case.method in _STREAMS or len(responses) == 1, f"{len(responses)} answers")
        # Of generations, none is queued for longer than it is watched; so none is ever cancelled.
        _require(case.method in checks, f"an answer to {case.method}")
        checks[case.method](case.person, request, responses if case.method in _STREAMS else responses[0])

    def _check_images_in(self, response: Message, person: Person) -> None:
        """Check what of each image in an answer may change between two looks at it, and clear that."""
        for kind, value in response.ListFields():
            for part in value if kind.is_repeated else [value]:
                if isinstance(part, pb.ImageDetail):
                    sources = [self.world.images.get(guid) for guid in part.source_guids]
                    _require(all(one and person.may_see(one) for one in sources), "a source that is not seen")
                    without_placeholder(part).ClearField("source_guids")
                elif isinstance(part, gpb.Generation):
                    self._check_images_in(part, person)

    def _check_created(self, person: Person, request: Any, response: Any) -> None:
        image = response.image
        if image.guid in self.world.images:
            _require(request.request_id != "", "an image twice without a request id")
            _require(image == self.world.images[image.guid], "another image under the same request id")
            return
        self.world.creates_left -= 1
        self.world.note_image(image)
        _require(image.prompt == request.prompt, "another prompt")
        _require(list(image.tags) == _distinct(request.tags), "other tags")
        _require(image.visibility == (request.visibility or pb.VISIBILITY_PRIVATE), "another visibility")
        _require(image.author == person.name, "another author")
        _require(image.filename == request.filename or (not request.filename and image.filename != ""), "a filename")
        if "x" in request.options.size:
            _require(request.options.size == f"{image.width}x{image.height}", "another size")
        if request.options.output_format:
            _require(image.content_type == f"image/{request.options.output_format}", "another type")

    def _check_imported(self, person: Person, requests: list[Any], response: Any) -> None:
        info, image = requests[0].info, response.image
        data = b"".join(request.data for request in requests)
        _require(image.sha256 == hashlib.sha256(data).hexdigest(), "other bytes")
        _require(image.author == person.name, "another author")
        if image.guid in self.world.images:
            _require(info.request_id != "", "an image twice without a request id")
            return
        self.world.creates_left -= 1
        self.world.note_image(image)
        _require(image.origin == pb.ORIGIN_IMPORTED, "another origin")
        _require(image.prompt == info.prompt, "another prompt")
        _require(list(image.tags) == _distinct(info.tags), "other tags")
        _require(image.visibility == (info.visibility or pb.VISIBILITY_PRIVATE), "another visibility")

    def _check_summarized(self, person: Person, request: Any, response: Any) -> None:
        named = {upb.USAGE_GROUPING_AUTHOR: "author", upb.USAGE_GROUPING_MODEL: "model", upb.USAGE_GROUPING_DAY: "day"}
        names = [named[group] for group in request.group_by]
        _require(len(set(names)) == len(names), "a group twice")
        _require(bool(names) or len(response.rows) == 1, f"{len(response.rows)} rows of a sum")
        if "author" in names and not person.is_admin:
            _require({row.author for row in response.rows} <= {person.name}, "others' usage")
        keys = [(row.day, row.author, row.model) for row in response.rows]
        _require(len(set(keys)) == len(keys), "a row twice")
        for name in {*named.values()} - {*names}:
            _require(not any(getattr(row, name) for row in response.rows), f"a {name} that was not asked for")

    def _check_quotas(self, person: Person, request: Any, response: Any) -> None:
        author = exact_key(request.author or person.name)
        known = {exact_key(one.name) for one in self.world.people} if person.is_admin else {exact_key(person.name)}
        limits = {quota.name: quota.limit for quota in response.quotas}
        _require(len(limits) == len(response.quotas), "a quota twice")
        _require(limits == (LIMITS if author in known else {}), "other quotas")
        for quota in response.quotas:
            _require(0 <= quota.used <= quota.limit, f"{quota.used} of {quota.limit} used")
            _require(0 <= quota.reserved <= quota.limit, f"{quota.reserved} of {quota.limit} reserved")

    def _check_got(self, person: Person, request: Any, response: Any) -> None:
        self._require_known(person, request.guid, response.image)

    def _check_listed(self, person: Person, request: pb.ListImagesRequest, response: pb.ListImagesResponse) -> None:
        _require(request.page_size >= 0, "a negative page")
        page_size = min(request.page_size, 200) or 50
        given = next((known for known in self.world.tokens if known.token == request.page_token), None)
        _require(given is not None or not request.page_token, "an unknown page token is taken")
        _require(given is None or given.person.name == person.name, "another's page token is taken")
        found = [
            image
            for image in sorted(self.world.images.values(), key=_moment, reverse=True)
            if person.may_see(image)
            and _matches(image, request)
            and (given is None or _moment(image) < _moment(given.last))
        ]
        _require(list(response.images) == found[:page_size], "not the images that match")
        _require(bool(response.next_page_token) == (len(found) > page_size), "a page token too many or too few")
        if response.next_page_token:
            asked = pb.ListImagesRequest()
            asked.CopyFrom(request)
            asked.page_token = response.next_page_token
            self.world.note_token(GivenToken(response.next_page_token, person, asked, response.images[-1]))

    def _check_content(self, person: Person, request: Any, responses: list[Any]) -> None:
        info, *rest = responses
        image = self._require_known(person, request.guid, None)
        _require(info.info.rendition == request.rendition, "another rendition")
        if request.rendition:
            _require(info.info.content_type == "image/webp", "another type")
            image = info.info
        names = ("guid", "filename", "content_type", "size_bytes", "sha256")
        _require(all(getattr(info.info, name) == getattr(image, name) for name in names), "other info")
        data = b"".join(part.data for part in rest)
        if info.info.not_modified:
            _require(request.if_none_match.lower() == image.sha256 and not rest, "not_modified for nothing")
            return
        end = request.read_offset + request.read_limit if request.read_limit else image.size_bytes
        _require(len(data) == max(0, min(end, image.size_bytes) - request.read_offset), "another length")
        if len(data) == image.size_bytes:
            _require(hashlib.sha256(data).hexdigest() == image.sha256, "other bytes")

    def _check_thumbnails(self, person: Person, request: Any, response: Any) -> None:
        answered = [thumbnail.guid for thumbnail in response.thumbnails]
        _require(sorted([*answered, *response.next_guids]) == sorted(map(str.lower, request.guids)), "other thumbnails")
        for thumbnail in response.thumbnails:
            if not thumbnail.error:
                self._require_known(person, thumbnail.guid, None)

    def _check_updated(self, person: Person, request: Any, response: Any) -> None:
        old, new = self.world.images[request.guid.lower()], response.image
        _require(person.may_write(old), "another's image was changed")
        wanted = pb.ImageDetail()
        wanted.CopyFrom(old)
        for name in list(request.update_mask.paths) or [
            name for name in ("filename", "tags", "visibility") if getattr(request, name)
        ]:
            if name == "tags":
                wanted.tags[:] = _distinct(request.tags)
            else:
                setattr(wanted, name, getattr(request, name))
        wanted.updated_at.CopyFrom(new.updated_at)
        _require(new == wanted, "not the change that was asked for")
        self.world.note_image(new)

    def _check_deleted(self, person: Person, request: Any, response: Any) -> None:
        guid = request.guid.lower()
        _require(person.may_write(self.world.images[guid]), "another's image was deleted")
        self.world.note_deleted(guid)

    def _check_started(self, person: Person, request: Any, response: Any) -> None:
        started = response.generation
        _require(started.author == person.name, "another author")
        _require(started.request.prompt == request.request.prompt, "another prompt")
        _require(started.request_id == request.request.request_id.lower(), "another request id")
        # Until its image is there, pages of images may have it or not.
        ended = self.world.watch(started.guid)
        if ended.image.guid in self.world.images:
            _require(request.request.request_id != "", "an image twice without a request id")
        elif ended.HasField("image"):
            self.world.creates_left -= 1
            self.world.note_image(ended.image)
        self.world.note_generation(ended)

    def _check_got_generation(self, person: Person, request: Any, response: Any) -> None:
        known, shown = self.world.generation_of(request, person), response.generation
        if known is None and request.request_id:
            # That of a CreateImage, whose answer does not name it.
            is_named = (shown.author, shown.request_id) == (person.name, request.request_id.lower())
            _require(is_named, "another generation than the request names")
            self.world.note_generation(shown)
            return
        _require(known is not None and shown.guid == known.guid, "a generation that is not known")

    def _check_watched(self, person: Person, request: Any, responses: list[Any]) -> None:
        # What is known has ended.
        _require(len(responses) == 1, f"{len(responses)} events of what has ended")
        self._check_got_generation(person, request, responses[0])

    def _check_listed_generations(self, person: Person, request: Any, response: Any) -> None:
        page = response.generations
        _require(request.page_size >= 0 and len(page) <= (min(request.page_size, 200) or 50), "more than a page")
        _require(person.is_admin or all(one.author == person.name for one in page), "others' generations")
        _require(not request.author or all(one.author == request.author for one in page), "another author's")
        _require(not request.states or all(one.state in request.states for one in page), "another state")
        moments = [_moment(one) for one in page]
        _require(moments == sorted(moments, reverse=True), "another order")
        given = self.world.generation_tokens
        _require(not request.page_token or given.get(request.page_token) == person.name, "another's token is taken")
        if response.next_page_token:
            given[response.next_page_token] = person.name

    def _require_known(self, person: Person, guid: str, shown: pb.ImageDetail | None) -> pb.ImageDetail:
        _require(_GUID.fullmatch(guid) is not None, "a guid that is none")
        image = self.world.images.get(guid.lower())
        if image is None:
            raise UnexpectedAnswerError(f"an image that there is not: {guid}")
        _require(person.may_see(image), f"{image.author}'s private image is shown to {person.name or 'anybody'}")
        _require(shown is None or shown == image, "another detail")
        return image


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UnexpectedAnswerError(what)


def _is_beyond_grpc(case: Case) -> bool:
    metadata = (*case.person.metadata, *case.metadata)
    return (
        len(case.data) > _MAX_MESSAGE_BYTES
        or sum(len(key) + len(value) for key, value in metadata) > _SAFE_METADATA_BYTES
    )


def _has_field(request: Message, path: str) -> bool:
    """Whether a violation's path, such as ``options.size`` or ``tags[3]``, leads to something in the request."""
    value: Any = request
    for part in path.split("."):
        found = re.fullmatch(r"([a-z0-9_]+)(?:\[(\d+)\])?", part)
        if not isinstance(value, Message) or found is None:
            return False
        if part in value.DESCRIPTOR.oneofs_by_name:
            return True
        if found[1] not in value.DESCRIPTOR.fields_by_name:
            return False
        value = getattr(value, found[1])
        if found[2] is not None:
            if int(found[2]) >= len(value):
                return False
            value = value[int(found[2])]
    return True


def _distinct(tags: Any) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(exact_key(tag), tag)
    return list(first.values())


def _moment(image: pb.ImageDetail | gpb.Generation) -> tuple[int, int]:
    return image.created_at.seconds, image.created_at.nanos


def _matches(image: pb.ImageDetail, request: pb.ListImagesRequest) -> bool:
    terms = index_terms(image.prompt)
    moment, after, before = _moment(image), request.created_after, request.created_before
    return all(
        (
            not request.guid or image.guid == request.guid.lower(),
            caseless_key(request.filename) in caseless_key(image.filename),
            {exact_key(tag) for tag in request.tags} <= {exact_key(tag) for tag in image.tags},
            not request.author or exact_key(request.author) == exact_key(image.author),
            request.visibility in (pb.VISIBILITY_UNSPECIFIED, image.visibility),
            not request.HasField("created_after") or moment > (after.seconds, after.nanos),
            not request.HasField("created_before") or moment < (before.seconds, before.nanos),
            *(
                any(term.startswith(wanted.text) for term in terms) if wanted.is_prefix else wanted.text in terms
                for wanted in query_terms(request.prompt)
            ),
        )
    )
