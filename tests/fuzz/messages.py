"""Fuzzing at the level of messages: well-formed requests with whatever their fields can hold, from whomever."""

from __future__ import annotations

import base64
import operator
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from tests.fuzz.cases import Case, Checker
from tests.fuzz.world import FILENAMES, NOBODY, PICTURE, PROMPTS, TAGS, Person, World
from tests.support.servers import Metadata, basic

Drawn = TypeVar("Drawn")

_CHARACTERS = st.characters(codec="utf-8")
_ODD_TEXTS = (
    " ",
    "\x00",
    "a\x00b",
    "\n",
    "a\u2028b",
    "\x7f",
    "\x85",
    "\ufeff",
    "\u202eevil\u202c",
    "\u200b",
    "e\u0301" * 40,
    "\ufdfa" * 30,
    "İıſK",
    "ß" * 255,
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\U0010ffff",
    "\ue000",
    "..",
    ".",
    "/",
    "\\",
    "../../etc/passwd",
    "%",
    "_",
    "%s%n{}",
    "' OR 1=1 --",
    '"; DROP TABLE images; --',
    "[[fault:500]]",
    "true",
    "null",
    "-1",
    "NaN",
)
_INT32 = st.integers(-(2**31), 2**31 - 1)
_INT64 = st.integers(-(2**63), 2**63 - 1)
_SIZES = (
    "",
    "",
    "64x64",
    "64x48",
    "16x16",
    "auto",
    "65x64",
    "16x64",
    "99999x99999",
    "0x0",
    "1e3x64",
    "６４x64",
    "64X64",
)


def _weighted(*choices: tuple[int, SearchStrategy[Drawn]]) -> SearchStrategy[Drawn]:
    """One of several strategies, as often as its weight says, which ``one_of`` knows nothing of."""
    strategies = [strategy for weight, strategy in choices for _ in range(weight)]

    # Hypothesis describes this function in a few words, but `strategies.__getitem__` with all that the list nests.
    def chosen(number: int) -> SearchStrategy[Drawn]:
        return strategies[number]

    return st.integers(0, len(strategies) - 1).flatmap(chosen)


def _texts(*usual: str) -> SearchStrategy[str]:
    """Texts of all kinds, the usual ones often."""
    # Around every limit, and far beyond.
    sizes = st.sampled_from((60, 64, 65, 255, 256, 1025, 20_000))
    return _weighted(
        (8, st.sampled_from(("", *usual))),
        (4, st.text(_CHARACTERS, max_size=30)),
        (3, st.sampled_from(_ODD_TEXTS)),
        (1, st.builds(operator.mul, st.text(_CHARACTERS, min_size=1, max_size=3), sizes)),
    )


def _visibilities() -> SearchStrategy[int]:
    return _weighted((5, st.integers(0, 2)), (1, _INT32))


def _places() -> SearchStrategy[int]:
    """Offsets and limits."""
    return _weighted((3, st.just(0)), (3, st.integers(0, 70_000)), (1, st.integers(-3, 3)), (1, _INT64))


def _chosen(*choices: str) -> SearchStrategy[str]:
    return _weighted((4, st.sampled_from(("", *choices))), (1, _texts()))


def _tags() -> SearchStrategy[list[str]]:
    return _weighted((3, st.lists(st.sampled_from(TAGS), max_size=3)), (1, st.lists(_texts(*TAGS), max_size=40)))


def _times() -> SearchStrategy[Timestamp | None]:
    seconds = st.one_of(
        st.integers(1_700_000_000, 2_000_000_000),
        st.sampled_from((-62_135_596_801, -62_135_596_800, 253_402_300_799)),
        _INT64,
    )
    nanos = st.one_of(st.integers(0, 999_999_999), st.sampled_from((0, 999_999_999, 1_000_000_000)), _INT32)
    return _weighted((5, st.none()), (1, st.builds(Timestamp, seconds=seconds, nanos=nanos)))


def _guids(world: World) -> SearchStrategy[str]:
    known = st.builds(world.pick_guid, st.integers(0, 10_000))
    return _weighted(
        (12, known),
        (2, st.builds(str.upper, known)),
        (1, st.uuids().map(str)),
        (
            1,
            st.sampled_from(("{}\n", " {}", "{{{}}}", "urn:uuid:{}")).flatmap(
                lambda form: st.builds(form.format, known)
            ),
        ),
        (1, st.builds(lambda guid: guid.replace("-", ""), known)),
        (1, _texts()),
    )


# --- Requests --------------------------------------------------------------------------------------------------------


def _creations(world: World) -> SearchStrategy[pb.CreateImageRequest]:
    options = st.builds(
        pb.GenerationOptions,
        model=_chosen("gpt-image-2.5-flare", "a:b/c.d_e-f"),
        size=_chosen(*_SIZES),
        quality=_chosen("low", "max", "LOW"),
        output_format=_chosen("png", "webp", "jpeg", "gif"),
        background=_chosen("auto", "opaque", "transparent"),
        partial_images=_weighted((4, st.integers(0, 3)), (1, _INT32)),
    )
    right_options = st.builds(
        pb.GenerationOptions, size=st.sampled_from(("", "64x64", "48x64")), output_format=st.sampled_from(("", "webp"))
    )
    request_ids = st.one_of(
        st.just(""), st.uuids().map(str), st.sampled_from(sorted(world.spent_ids.values())), _texts()
    )
    inputs = st.builds(pb.ImageInput, guid=_guids(world))
    right = st.builds(
        pb.CreateImageRequest,
        prompt=st.one_of(
            st.sampled_from(PROMPTS), st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
        ),
        tags=st.lists(st.sampled_from(TAGS), max_size=3),
        visibility=st.integers(0, 2),
        filename=st.sampled_from(("", *FILENAMES)),
        request_id=st.one_of(st.just(""), st.uuids().map(str)),
        options=right_options,
    )
    wild = st.builds(
        pb.CreateImageRequest,
        prompt=_texts(*PROMPTS),
        tags=_tags(),
        visibility=_visibilities(),
        filename=_texts(*FILENAMES),
        request_id=request_ids,
        options=st.one_of(st.none(), right_options, options),
        inputs=_weighted((3, st.just([])), (1, st.lists(inputs, max_size=18))),
        mask=_weighted((6, st.none()), (1, inputs)),
    )
    return _weighted((1, right), (3, wild))


def _page_tokens(world: World) -> SearchStrategy[str]:
    def given_token(number: int) -> str:
        return world.tokens[number % len(world.tokens)].token if world.tokens else ""

    def changed(number: int, at: int, to: str) -> str:
        token = given_token(number)
        # Not the last character, of which not all bits count.
        at = at % max(1, len(token) - 1)
        return token[:at] + to + token[at + 1 :]

    numbers = st.integers(0, 10_000)
    return _weighted(
        (12, st.just("")),
        (1, st.builds(given_token, numbers)),
        (1, st.builds(changed, numbers, numbers, st.sampled_from("AZaz09-_=+/é\x00"))),
        (1, st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode())),
        (1, _texts()),
    )


def _listings(world: World) -> SearchStrategy[pb.ListImagesRequest]:
    def next_page(number: int) -> pb.ListImagesRequest:
        return world.tokens[number % len(world.tokens)].request if world.tokens else pb.ListImagesRequest(page_size=2)

    def mostly_empty(strategy: SearchStrategy[str]) -> SearchStrategy[str]:
        return _weighted((5, st.just("")), (1, strategy))

    asked = st.builds(
        pb.ListImagesRequest,
        page_size=_weighted((5, st.integers(0, 5)), (2, st.integers(-3, 300)), (1, _INT32)),
        page_token=_page_tokens(world),
        prompt=mostly_empty(_texts("light", "nacht strassen", "日出", "雪山", "ภูเขา", "🌊", "creme", "the")),
        filename=mostly_empty(_texts("png", "HOUSE", "ä", "%", "图")),
        guid=mostly_empty(_guids(world)),
        tags=_weighted((4, st.builds(list)), (1, _tags())),
        author=mostly_empty(_texts("ann", "bob", "root", "Ann")),
        visibility=_visibilities(),
        created_after=_times(),
        created_before=_times(),
    )
    return _weighted((4, asked), (1, st.builds(next_page, st.integers(0, 10_000))))


def _contents(world: World) -> SearchStrategy[pb.GetImageContentRequest]:
    def held(number: int) -> str:
        image = world.images.get(world.pick_guid(number))
        return image.sha256 if image else ""

    sums = _weighted((4, st.just("")), (1, st.builds(held, st.integers(0, 10_000))), (1, _texts("0" * 64)))
    return st.builds(
        pb.GetImageContentRequest,
        guid=_guids(world),
        read_offset=_places(),
        read_limit=_places(),
        if_none_match=sums,
    )


def _updates(world: World) -> SearchStrategy[pb.UpdateImageRequest]:
    paths = st.lists(_chosen("filename", "tags", "visibility", "prompt", "*", "options.size", "FILENAME"), max_size=4)
    return st.builds(
        pb.UpdateImageRequest,
        guid=_guids(world),
        filename=_texts(*FILENAMES),
        tags=_tags(),
        visibility=_visibilities(),
        update_mask=st.one_of(
            st.none(), st.builds(FieldMask, paths=paths), st.builds(FieldMask, paths=st.lists(_texts(), max_size=100))
        ),
    )


def _generations(world: World) -> SearchStrategy[Message]:
    known = st.builds(world.pick_generation, st.integers(0, 10_000))
    guids = _weighted((4, known), (1, _guids(world)))
    request_ids = _weighted((3, st.sampled_from(sorted(world.spent_ids.values()))), (1, _texts()))
    named: list[SearchStrategy[Message]] = [
        strategy
        for kind in (gpb.GetGenerationRequest, gpb.WatchGenerationRequest)
        for strategy in (st.builds(kind, guid=guids), st.builds(kind, request_id=request_ids), st.builds(kind))
    ]

    def given_token(number: int) -> str:
        given = list(world.generation_tokens)
        return given[number % len(given)] if given else ""

    tokens = _weighted((8, st.just("")), (2, st.builds(given_token, st.integers(0, 10_000))), (1, _page_tokens(world)))
    listings = st.builds(
        gpb.ListGenerationsRequest,
        page_size=_weighted((5, st.integers(0, 5)), (2, st.integers(-3, 300)), (1, _INT32)),
        page_token=tokens,
        states=st.lists(_weighted((8, st.integers(1, 6)), (1, _INT32)), max_size=4),
        author=_weighted((4, st.just("")), (1, _texts("ann", "bob", "root"))),
        created_after=_times(),
        created_before=_times(),
    )
    return _weighted(
        (1, st.builds(gpb.CreateGenerationRequest, request=_weighted((9, _creations(world)), (1, st.none())))),
        (2, st.one_of(named)),
        (2, listings),
        (1, st.builds(gpb.CancelGenerationRequest, guid=guids)),
    )


def _usages() -> SearchStrategy[Message]:
    groups = st.lists(st.integers(1, 3), max_size=3, unique=True)
    authors = _weighted((2, st.just("")), (1, _texts("ann", "bob", "root", "Ann")))
    summaries = st.builds(
        upb.SummarizeUsageRequest,
        start=_times(),
        end=_times(),
        group_by=_weighted((3, groups), (1, st.lists(_weighted((3, st.integers(0, 4)), (1, _INT32)), max_size=5))),
        author=authors,
    )
    return st.one_of(summaries, st.builds(upb.GetQuotaRequest, author=authors))


def _imports(world: World) -> SearchStrategy[Sequence[Message]]:
    """The messages of imports, in a right order and in others."""
    right = st.builds(
        pb.ImportImageInfo,
        prompt=st.sampled_from(("", *PROMPTS)),
        tags=st.lists(st.sampled_from(TAGS), max_size=3),
        visibility=st.integers(0, 2),
    )
    wild = st.builds(
        pb.ImportImageInfo,
        prompt=_texts(*PROMPTS),
        tags=_tags(),
        visibility=_visibilities(),
        filename=_texts(*FILENAMES),
        request_id=st.one_of(
            st.just(""), st.uuids().map(str), st.sampled_from(sorted(world.spent_ids.values())), _texts()
        ),
        sha256=_weighted((4, st.just("")), (1, _texts("0" * 64))),
    )
    infos = st.builds(pb.ImportImageRequest, info=_weighted((1, right), (2, wild)))
    whole = st.integers(1, len(PICTURE)).map(
        lambda size: [
            pb.ImportImageRequest(data=PICTURE[start : start + size]) for start in range(0, len(PICTURE), size)
        ]
    )
    pieces = st.builds(pb.ImportImageRequest, data=st.binary(max_size=100))
    anything = st.one_of(infos, pieces, st.builds(pb.ImportImageRequest))
    return _weighted(
        (3, st.builds(lambda info, data: [info, *data], infos, whole)),
        (1, st.builds(lambda info, data, end: [info, *data, end], infos, whole, anything)),
        (1, st.lists(anything, min_size=1, max_size=4)),
    )


# --- Callers ---------------------------------------------------------------------------------------------------------


def _people(world: World) -> SearchStrategy[Person]:
    right = st.sampled_from((*world.people, *world.people, NOBODY))
    names = st.sampled_from(("ann", "nobody", "root\x00", "Ann", "é"))
    schemes = st.sampled_from(("basic", "BASIC", "Basic ", "bAsIc  "))
    return _weighted(
        (180, right),
        (8, st.builds(_signed_in_oddly, st.sampled_from(world.people), schemes)),
        (8, _headers().map(lambda value: _refused((("authorization", value),)))),
        (3, st.sampled_from(world.people).map(lambda person: _refused((*person.metadata, *person.metadata)))),
        # Each of these costs the server a real check of a password; so they are few.
        (1, names.map(lambda name: _refused(basic(name, "wrong")))),
    )


def _refused(metadata: Metadata) -> Person:
    return Person("", metadata, is_refused=True)


def _signed_in_oddly(person: Person, scheme: str) -> Person:
    ((key, value),) = person.metadata
    return Person(person.name, ((key, value.replace("Basic", scheme)),), person.is_admin)


def _headers() -> SearchStrategy[str]:
    """Authorization values that hold no credentials."""

    def encode(data: bytes) -> str:
        return "Basic " + base64.b64encode(data).decode()

    return st.one_of(
        st.sampled_from(
            ("", "Basic", "Basic ", "Basic :", "Basic =", "Basic ====", "Bearer abc", "Basic YTpi YTpi", "Digest a=b")
        ),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200).map("Basic !{}".format),
        st.binary(max_size=40).map(lambda data: encode(data.replace(b":", b""))),
        st.binary(max_size=20).map(lambda data: encode(b"\xff" + data + b":x")),
        # Longer than any name or password may be, so that nothing is looked up.
        st.sampled_from(("a" * 65 + ":b", "é" * 100 + ":", "ann:" + "a" * 1025)).map(
            lambda text: encode(text.encode())
        ),
    )


def _extra_metadata() -> SearchStrategy[tuple[tuple[str, str | bytes], ...]]:
    values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50).map(str.strip)
    pairs: SearchStrategy[tuple[str, str | bytes]] = st.one_of(
        st.tuples(
            st.from_regex(r"x[a-z0-9_.-]{0,20}[a-z]", fullmatch=True).filter(lambda key: not key.endswith("-bin")),
            values,
        ),
        st.tuples(st.from_regex(r"x[a-z0-9_.-]{0,20}-bin", fullmatch=True), st.binary(max_size=100)),
        st.tuples(
            st.sampled_from(("x-request-id", "cookie", "forwarded", "authorization-bin", "proxy-authorization")), values
        ).map(lambda pair: (pair[0], pair[1].encode()) if pair[0].endswith("-bin") else pair),
        st.tuples(
            st.just("x-huge"), st.sampled_from((3_000, 7_000, 9_000, 17_000, 100_000)).map(lambda size: "x" * size)
        ),
    )
    nothing: SearchStrategy[tuple[tuple[str, str | bytes], ...]] = st.just(())
    return _weighted((9, nothing), (1, st.lists(pairs, max_size=4).map(tuple)))


# --- Everything together ---------------------------------------------------------------------------------------------


def cases(world: World) -> SearchStrategy[Case]:
    """Calls of every method."""
    requests: SearchStrategy[Message | Sequence[Message]] = _weighted(
        (4, _creations(world)),
        (2, st.builds(pb.GetImageRequest, guid=_guids(world))),
        (5, _listings(world)),
        (3, _contents(world)),
        (4, _updates(world)),
        (1, st.builds(pb.DeleteImageRequest, guid=_guids(world))),
        (6, _generations(world)),
        (2, _usages()),
        (1, _imports(world)),
    )
    return st.builds(Case.of, requests, _people(world), _extra_metadata())


def fuzz_messages(checker: Checker, number: int, inputs: int) -> int:
    """Send a batch of calls; the same number makes the same batch, as far as the server's guids allow.

    Returns:
        How many inputs were sent.

    Raises:
        AssertionError: an answer is not as it must be; its notes hold the smallest call that was found to show it.
    """
    sent = 0

    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(checker.world))
    def check(case: Case) -> None:
        nonlocal sent
        sent += 1
        checker.check(case)

    run: Callable[[], None] = check
    run()
    return sent
