"""The measurements. Each adds to the figures, by name, one value for each round."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import urlsplit

import grpc
import httpx2
import openai
from google.protobuf.message import Message
from pixyproxy_pb.v1 import image_service_pb2 as pb

from benchmarks import dataset
from benchmarks.dataset import CONTENT_SIZES
from benchmarks.load import Load
from benchmarks.processes import ROOT, Cores, Serving, let_loose, on_cores, python, serving
from benchmarks.site import Site
from tests.support.openai_stand_in import API_KEY
from tests.support.servers import image_stub

Figures = defaultdict[str, list[float]]
"""Values by name, one for each round."""

MIB = 1024 * 1024
CONNECTIONS = 64
CROWDS = (1, 8, 64, 256, 1000, 5000)
GALLERY_PAGE = 50
WORKERS = 2
STALLED_READERS = 200
STREAMS = 500
CONTENT_OPTIMIZATIONS = ("raw bytes", "trusted hashes")
GENERATIONS_A_WORKER = 64
LARGE_IMAGE = 8 * MIB

_ONE_WORKER = {"PIXYPROXY_WORKERS": "1"}
_ALL_WORKERS = {"PIXYPROXY_WORKERS": str(WORKERS)}
_SERVE = python("pixyproxy", "serve")
_SHELL = python("benchmarks.peers.shell", "serve")
_BARE = python("benchmarks.peers.bare")
_WITHOUT = python("benchmarks.peers.without", "serve")
# A generation of a real provider takes 6 seconds at least; so many slots then get about as many answers a second.
_PROVIDER_SECONDS = 20
_QUIET_RATE = 200  # calls a second that leave most of two cores idle
_GALLERIES = 4  # of images whose renditions are made


def on_one_core(site: Site, figures: Figures) -> None:
    """GetImage from one worker on one core, while the database and the callers have the other."""
    site.put_database_on(site.second)
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                serving(command, site.first, site.folder / f"one-{name}", site.settings | _ONE_WORKER)
            )
            for name, command in (("bare", _BARE), ("shell", _SHELL), ("pixyproxy", _SERVE))
        }
        for _ in range(site.rounds):
            for name, server in servers.items():
                load = _get_images(site, server, site.second)
                figures[f"one core: {name}"].append(load.rate)
                figures["one core: share of a core that the load took"].append(load.client_cpu)
            figures["one core: select"].append(_select_rate(site))


def on_two_cores(site: Site, figures: Figures) -> None:
    """GetImage with everything on both cores, beside services that do the same."""
    site.put_database_on(site.both)
    paths = [f"/images/{guid}" for guid in dataset.guids()]
    with contextlib.ExitStack() as stack:

        def start(name: str, command: tuple[str, ...], **settings: str) -> Serving:
            return stack.enter_context(
                serving(command, site.both, site.folder / f"two-{name}", site.settings | settings)
            )

        workers = start("workers", _SERVE, **_ALL_WORKERS)
        single = start("single", _SERVE, **_ONE_WORKER)
        let_loose(single.process, site.both)
        fastapi = {
            driver: start(driver, python("benchmarks.peers.fastapi_service", str(WORKERS)), PEER_DRIVER=driver)
            for driver in ("mysql-connector", "asyncmy")
        }
        peer = stack.enter_context(_go_peer(site, "two-go"))
        for _ in range(site.rounds):
            figures["two cores: pixyproxy"].append(_get_images(site, workers, site.both).rate)
            figures["two cores: one process on both"].append(_get_images(site, single, site.both).rate)
            for driver, service in fastapi.items():
                load = site.loader.http(
                    service.address, paths, site.both, connections=CONNECTIONS, seconds=site.seconds, warm_up=0.7
                )
                figures[f"two cores: FastAPI, {driver}"].append(load.rate)
            figures["two cores: go"].append(_get_images(site, peer, site.both).rate)


def crowds(site: Site, figures: Figures) -> None:
    """GetImage with more and more connections, each with a call in flight, beside grpc-go."""
    site.put_database_on(site.both)
    with (
        serving(_SERVE, site.both, site.folder / "crowds", site.settings | _ALL_WORKERS) as workers,
        _go_peer(site, "crowds-go") as peer,
    ):
        for server in (workers, peer):
            # The first calls check the password, which takes a busy machine seconds.
            options = {"connections": CONNECTIONS, "seconds": 1, "warm_up": 5}
            site.loader.crowd(server.address, "GetImage", site.image_requests, site.both, **options)
        for _ in range(site.rounds):
            for count in CROWDS:
                for name, server in (("pixyproxy", workers), ("go", peer)):
                    load, memory = _crowd(site, server, count)
                    of = f"crowds: {name}, {count} connections"
                    figures[of].append(load.rate)
                    figures[f"{of}, answered"].append(1 - load.refused)
                    figures[f"{of}, p50, ms"].append(load.p50_ms)
                    figures[f"{of}, p99, ms"].append(load.p99_ms)
                    figures[f"{of}, MB"].append(memory / 1e6)


def contents(site: Site, figures: Figures) -> None:
    """GetImageContent of 4 MiB from one worker on one core."""
    site.put_database_on(site.second)
    with contextlib.ExitStack() as stack:

        def start(name: str, command: tuple[str, ...], **settings: str) -> Serving:
            folder = site.folder / f"content-{name}"
            return stack.enter_context(serving(command, site.first, folder, site.settings | _ONE_WORKER | settings))

        bare, server = start("bare", _BARE), start("pixyproxy", _SERVE)
        others = {name: start(name, _WITHOUT, PEER_WITHOUT=name) for name in CONTENT_OPTIMIZATIONS}
        for _ in range(site.rounds):
            for name, one in (("bare", bare), ("pixyproxy", server)):
                load = _get_contents(site, one, connections=8)
                figures[f"content: {name}, 8 readers, MiB/s"].append(load.bytes_rate / MIB)
                load = _get_contents(site, one, connections=1)
                figures[f"content: {name}, 1 reader, MiB/s"].append(load.bytes_rate / MIB)
                figures[f"content: {name}, first byte, ms"].append(load.first_byte_ms)
            for name, other in others.items():
                load = _get_contents(site, other, connections=8)
                figures[f"content: without {name}, 8 readers, MiB/s"].append(load.bytes_rate / MIB)
        before = server.rss()
        with site.loader.stalled(server.address, [site.content_request], site.second, STALLED_READERS) as begun:
            figures["content: KiB a stalled reader"].append((server.rss() - before) / begun / 1024)


def contents_beside_go(site: Site, figures: Figures) -> None:
    """GetImageContent of several sizes with everything on both cores, beside a service in Go that does the same."""
    site.put_database_on(site.both)
    with (
        serving(_SERVE, site.both, site.folder / "sizes", site.settings | _ALL_WORKERS) as server,
        _go_peer(site, "sizes-go") as peer,
    ):
        for _, (guid, size) in itertools.product(range(site.rounds), zip(dataset.guids(), CONTENT_SIZES, strict=False)):
            for name, one in (("pixyproxy", server), ("go", peer)):
                request = pb.GetImageContentRequest(guid=guid)
                load = site.loader.grpc(
                    one.address,
                    "GetImageContent",
                    [request],
                    site.both,
                    connections=8,
                    seconds=site.seconds,
                    warm_up=0.5,
                )
                figures[f"content: {name}, {size // 1024} KiB, 8 readers, a second"].append(load.rate)


def thumbnails(site: Site, figures: Figures) -> None:
    """BatchGetThumbnails of a gallery page beside GetImage, with one connection."""
    site.put_database_on(site.both)
    with (
        # Without a provider it draws the images itself.
        serving(_SERVE, site.both, site.folder / "thumbnails", site.settings | _ALL_WORKERS) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        guids = _gallery(site, channel)
        request = pb.BatchGetThumbnailsRequest(guids=guids)
        began = time.perf_counter()
        _make_thumbnails(site, channel, guids)
        figures["thumbnails: all made, s"].append(time.perf_counter() - began)
        answer = image_stub(channel).BatchGetThumbnails(request, metadata=site.login.metadata)
        figures["thumbnails: MB a page"].append(answer.ByteSize() / 1e6)

        def p50(method: str, requests: Sequence[Message]) -> float:
            options = {"connections": 1, "seconds": site.seconds, "warm_up": 0.7}
            return site.loader.grpc(server.address, method, requests, site.both, **options).p50_ms

        for _ in range(site.rounds):
            figures["thumbnails: p50, ms"].append(p50("BatchGetThumbnails", [request]))
            figures["thumbnails: GetImage p50, ms"].append(p50("GetImage", site.image_requests))


def renditions(site: Site, figures: Figures) -> None:
    """The p99 of GetImage at a steady rate: idle, and while renditions are made without a pause."""
    site.put_database_on(site.both)
    with (
        serving(_SERVE, site.both, site.folder / "renditions", site.settings | _ALL_WORKERS) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        # Enough for all rounds: a rendition is made once.
        guids = [guid for _ in range(_GALLERIES) for guid in _gallery(site, channel)]
        # With the placeholders, which would be made during the measurement.
        _make_thumbnails(site, channel, guids)
        wanted = itertools.product((pb.RENDITION_512, pb.RENDITION_1024, pb.RENDITION_2048), guids)
        for _ in range(site.rounds):
            figures["renditions: idle p99, ms"].append(_quiet_p99(site, server))
            with _making_renditions(site, channel, wanted) as made:
                began = time.monotonic()
                figures["renditions: busy p99, ms"].append(_quiet_p99(site, server))
                figures["renditions: made a second"].append(next(made) / (time.monotonic() - began))


def under_stress(site: Site, figures: Figures) -> None:
    """The p99 of GetImage at a steady rate: idle, and with all generation slots busy and 200 stalled readers."""
    site.put_database_on(site.both)
    with _provider(site) as provider, _serving_all(site, provider, "stress") as server:
        for _ in range(site.rounds):
            figures["idle p99, ms"].append(_quiet_p99(site, server))
        with (
            site.loader.stalled(server.address, [site.content_request], site.both, STALLED_READERS) as begun,
            _busy_generations(site, server),
        ):
            figures["stalled readers that began"].append(begun)
            for _ in range(site.rounds):
                figures["busy p99, ms"].append(_quiet_p99(site, server))


def creation(site: Site, figures: Figures) -> None:
    """What CreateImage adds to the provider's time, and the memory of images in flight."""
    site.put_database_on(site.both)
    prompt = f"[[fault:late=0.05:bytes={MIB}]]"
    with (
        _provider(site) as provider,
        _serving_all(site, provider, "creation") as server,
        # It does not ask again by itself, which would seem to be a slow provider. So it has a connection for each
        # request, as PixyProxy has: one that is kept may just be closed by the other side.
        openai.DefaultHttpxClient(limits=httpx2.Limits(max_keepalive_connections=0)) as http,
        openai.OpenAI(base_url=provider["OPENAI_BASE_URL"], api_key=API_KEY, max_retries=0, http_client=http) as client,
        grpc.insecure_channel(server.address) as channel,
    ):

        def ask_provider() -> None:
            client.images.generate(prompt=prompt, model="gpt-image-2.5-flare", size="1024x1024")

        def create() -> None:
            image_stub(channel).CreateImage(pb.CreateImageRequest(prompt=prompt), metadata=site.login.metadata)

        for _ in range(site.rounds):
            direct = statistics.median(_milliseconds(ask_provider) for _ in range(10))
            figures["CreateImage adds, ms"].append(statistics.median(_milliseconds(create) for _ in range(10)) - direct)
        figures["memory of an image in flight / its size"].append(_memory_in_flight(site, server))


def creation_rate(site: Site, figures: Figures) -> None:
    """CreateImage of 2 MB by 16 callers, from a provider that answers at once."""
    site.put_database_on(site.both)
    prompt = f"[[fault:late=0:bytes={2 * MIB}]]"
    workers = {"PIXYPROXY_GENERATION_WORKERS": str(WORKERS)}
    with _provider(site) as provider, _serving_all(site, provider | workers, "creation-rate") as server:
        _create_many(site, server, prompt, seconds=1)
        for _ in range(site.rounds):
            created = _create_many(site, server, prompt, seconds=2 * site.seconds)
            figures["CreateImage of 2 MB, a second"].append(created / (2 * site.seconds))


def limits(site: Site, figures: Figures) -> None:
    """What a server takes to start and to hold, and how much it takes on at once."""
    site.put_database_on(site.both)
    for number in range(site.rounds):
        folder = site.folder / f"start-{number}"
        with serving(_SERVE, site.both, folder, site.settings | _ALL_WORKERS) as server:
            figures["start to serving, s"].append(server.start_seconds)
            figures["MB a worker at rest"].append(max(server.rss_of_workers()) / 1e6)
    with _provider(site) as provider, _serving_all(site, provider, "limits") as server:
        with site.loader.stalled(server.address, [site.content_request], site.both, STREAMS) as begun:
            figures["open streams"].append(begun)
        # Answers come late enough for all to be submitted at once; what is queued until then comes too late.
        wanted, late = GENERATIONS_A_WORKER * WORKERS, site.seconds * 2 + 2
        prompt = f"[[fault:late={late}:bytes={64 * 1024}]]"
        made = _create_at_once(site, server, prompt, wanted, timeout=1.9 * late)
        figures["generations at a time, a worker"].append(made / WORKERS)


# --- Parts of them ---------------------------------------------------------------------------------------------------


def _get_images(site: Site, server: Serving, cores: Cores) -> Load:
    return site.loader.grpc(
        server.address,
        "GetImage",
        site.image_requests,
        cores,
        connections=CONNECTIONS,
        seconds=site.seconds,
        warm_up=0.7,
    )


def _crowd(site: Site, server: Serving, connections: int) -> tuple[Load, int]:
    """Call GetImage over many connections; return also the most bytes of memory that the server had meanwhile."""
    options = {
        "connections": connections,
        "seconds": site.seconds,
        # The first calls of all connections come at once.
        "warm_up": 0.7 + connections / 2500,
    }
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(site.loader.crowd, server.address, "GetImage", site.image_requests, site.both, **options)
        most = server.pss()
        while not wait([load], timeout=0.5).done:
            most = max(most, server.pss())
    return load.result(), most


@contextlib.contextmanager
def _go_peer(site: Site, name: str) -> Iterator[Serving]:
    """Run the peer in Go on both cores."""
    settings = site.settings | {
        "PEER_DATABASE": _go_address(site),
        "PEER_STORE": site.settings["PIXYPROXY_IMAGE_STORE"],
        "GOMAXPROCS": str(WORKERS),
    }
    with serving((str(site.programs.peer),), site.both, site.folder / name, settings) as peer:
        yield peer


def _get_contents(site: Site, server: Serving, connections: int) -> Load:
    return site.loader.grpc(
        server.address,
        "GetImageContent",
        [site.content_request],
        site.second,
        connections=connections,
        seconds=site.seconds,
        warm_up=0.5,
    )


def _select_rate(site: Site) -> float:
    command = [*on_cores(site.first), *python("benchmarks.peers.driver", str(site.seconds))]
    done = subprocess.run(command, env=site.settings, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _go_address(site: Site) -> str:
    """Write the database's address as the Go driver takes it."""
    url = urlsplit(site.settings["PIXYPROXY_DATABASE_URL"])
    return f"{url.username}:{url.password}@tcp({url.hostname}:{url.port}){url.path}?tls=skip-verify&parseTime=true"


@contextlib.contextmanager
def _provider(site: Site) -> Iterator[dict[str, str]]:
    """Run the provider's stand-in; gives the settings that lead to it."""
    with serving(python("benchmarks.peers.provider"), site.both, site.folder / "provider", {}) as provider:
        yield {"OPENAI_BASE_URL": f"http://{provider.address}/v1", "OPENAI_API_KEY": API_KEY}


@contextlib.contextmanager
def _serving_all(site: Site, provider: dict[str, str], name: str) -> Iterator[Serving]:
    """Run PixyProxy with all workers in front of the provider."""
    settings = site.settings | provider | _ALL_WORKERS
    with serving(_SERVE, site.both, site.folder / name, settings) as server:
        yield server


def _quiet_p99(site: Site, server: Serving) -> float:
    """Return the p99 of GetImage in milliseconds, at a rate that leaves the server idle most of the time."""
    options = {"connections": 16, "seconds": 2 * site.seconds, "warm_up": 0.7, "rate": _QUIET_RATE}
    return site.loader.grpc(server.address, "GetImage", site.image_requests, site.both, **options).p99_ms


def _gallery(site: Site, channel: grpc.Channel) -> list[str]:
    """Create a page of images; return their guids."""
    return [_create(site, channel, f"thumbnail {number}") for number in range(GALLERY_PAGE)]


def _make_thumbnails(site: Site, channel: grpc.Channel, guids: list[str]) -> None:
    while guids:
        page = pb.BatchGetThumbnailsRequest(guids=guids[:GALLERY_PAGE])
        answer = image_stub(channel).BatchGetThumbnails(page, metadata=site.login.metadata)
        guids = [*answer.next_guids, *guids[GALLERY_PAGE:]]


@contextlib.contextmanager
def _making_renditions(
    site: Site, channel: grpc.Channel, wanted: Iterator[tuple[pb.Rendition, str]]
) -> Iterator[Iterator[int]]:
    """Let two callers request renditions, one after the other; gives a counter of those that were made."""
    ended, made, lock = threading.Event(), itertools.count(), threading.Lock()

    def keep_requesting() -> None:
        while not ended.is_set():
            with lock:
                rendition, guid = next(wanted)
            request = pb.GetImageContentRequest(guid=guid, rendition=rendition)
            for _ in image_stub(channel).GetImageContent(request, metadata=site.login.metadata):
                pass
            next(made)

    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(keep_requesting) for _ in range(2)]
        try:
            yield made
        finally:
            ended.set()
        for caller in callers:
            caller.result()


def _milliseconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


@contextlib.contextmanager
def _channels(server: Serving, count: int) -> Iterator[list[grpc.Channel]]:
    """Open connections: each goes to one of the workers, by chance."""
    with contextlib.ExitStack() as stack:
        options = (("grpc.use_local_subchannel_pool", 1),)
        yield [stack.enter_context(grpc.insecure_channel(server.address, options)) for _ in range(count)]


@contextlib.contextmanager
def _busy_generations(site: Site, server: Serving) -> Iterator[None]:
    """Keep all generation slots busy; large answers come one after the other, not all at once."""
    ended = threading.Event()
    count = GENERATIONS_A_WORKER * WORKERS

    def keep_creating(channel: grpc.Channel, number: int) -> None:
        # The first answers are spread over the time that each takes.
        seconds = _PROVIDER_SECONDS * (number + 1) / count
        while not ended.is_set():
            _create(site, channel, f"[[fault:late={seconds}:bytes={LARGE_IMAGE}]]")
            seconds = _PROVIDER_SECONDS
            ended.wait(0.1)

    with _channels(server, 16) as channels, ThreadPoolExecutor(count) as threads:
        callers = [threads.submit(keep_creating, channels[number % len(channels)], number) for number in range(count)]
        try:
            yield
        finally:
            ended.set()
        for caller in callers:
            caller.result()


def _create(site: Site, channel: grpc.Channel, prompt: str, timeout: float | None = None) -> str:
    """Create an image, and return its guid."""
    request = pb.CreateImageRequest(prompt=prompt)
    answer = image_stub(channel).CreateImage(request, metadata=site.login.metadata, timeout=timeout)
    guid: str = answer.image.guid
    return guid


def _create_many(site: Site, server: Serving, prompt: str, seconds: float) -> int:
    """Have 16 callers create images, one after the other, for so long; return how many were created in this time."""
    ends_at = time.monotonic() + seconds

    def keep_creating(channel: grpc.Channel) -> int:
        created = 0
        while True:
            _create(site, channel, prompt)
            if time.monotonic() > ends_at:
                return created
            created += 1

    with _channels(server, 16) as channels, ThreadPoolExecutor(len(channels)) as threads:
        return sum(threads.map(keep_creating, channels))


def _create_at_once(site: Site, server: Serving, prompt: str, count: int, timeout: float | None = None) -> int:
    """Create so many images at once, over several connections; return how many were there within the timeout."""

    def create(channel: grpc.Channel) -> bool:
        try:
            _create(site, channel, prompt, timeout)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return False
        return True

    with _channels(server, 16) as channels, ThreadPoolExecutor(count) as threads:
        return sum(threads.map(create, itertools.islice(itertools.cycle(channels), count)))


def _memory_in_flight(site: Site, server: Serving) -> float:
    """Return the most memory that images take while they are made and stored, beside their size."""
    count = 16
    prompt = f"[[fault:late=0.5:bytes={LARGE_IMAGE}]]"
    before = server.rss()
    server.forget_peak()
    made = _create_at_once(site, server, prompt, count)
    return (server.peak_rss() - before) / (made * LARGE_IMAGE)
