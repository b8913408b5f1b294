"""A provider that fails in every way the stand-in knows, and one that is not there at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, WAIT_TIMEOUT, Bench, Site, Wish
from tests.faults.tcp_proxy import tcp_proxy
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_OK = "OK"
_TIMEOUT = "DEADLINE_EXCEEDED PROVIDER_TIMEOUT"
_UNAVAILABLE = "UNAVAILABLE PROVIDER_UNAVAILABLE"
_UNKNOWN = f"FAILED_PRECONDITION {OUTCOME_UNKNOWN}"
_MISCONFIGURED = "FAILED_PRECONDITION PROVIDER_MISCONFIGURED"
_QUOTA = "RESOURCE_EXHAUSTED PROVIDER_QUOTA"
_RATE_LIMITED = "RESOURCE_EXHAUSTED PROVIDER_RATE_LIMITED"


@dataclass(frozen=True)
class ProviderFault:
    """What the stand-in does, and what must come of it.

    Attributes:
        word: the stand-in's control word.
        told: code and reason.
        submissions: how often it is asked.
        then: what the same request id is told afterwards; empty where it is begun again.
        retry_after: the seconds that the caller is told to wait, None for any or none.
    """

    word: str
    told: str
    submissions: int
    then: str = ""
    retry_after: float | None = None


FAULTS = (
    ProviderFault("hang", _TIMEOUT, 1, _UNKNOWN),
    ProviderFault("drip", _TIMEOUT, 1, _UNKNOWN),
    ProviderFault("drop", _UNKNOWN, 1, _UNKNOWN),
    ProviderFault("drop_midway", _UNKNOWN, 1, _UNKNOWN),
    ProviderFault("408", _TIMEOUT, 1, _UNKNOWN),
    ProviderFault("409", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("500", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("500:times=2", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("502", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("504", _TIMEOUT, 1, _UNKNOWN),
    ProviderFault("524", _TIMEOUT, 1, _UNKNOWN),
    ProviderFault("529", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("error_as_success", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("empty_data", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("null_data", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("no_b64", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("bad_base64", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("not_an_image", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("truncated", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("bad_json", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("html", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("503", _UNAVAILABLE, 3),
    ProviderFault("503:times=2", _OK, 3, _OK),
    ProviderFault("503:times=1:retry-after=1", _OK, 2, _OK),
    ProviderFault("429:retry-after-ms=200", _RATE_LIMITED, 4, retry_after=0.2),
    ProviderFault("429:times=1", _OK, 2, _OK),
    ProviderFault("429:times=1:retry-after=1", _OK, 2, _OK),
    ProviderFault("429:times=1:retry-after=30", _RATE_LIMITED, 1, _OK, retry_after=30),
    ProviderFault("429:code=insufficient_quota", _QUOTA, 1),
    ProviderFault("429:code=project_spend_limit_exceeded", _QUOTA, 1),
    ProviderFault("400", "INVALID_ARGUMENT INVALID_FIELD", 1),
    ProviderFault("moderation_blocked", "FAILED_PRECONDITION PROMPT_REFUSED", 1),
    ProviderFault("401", _MISCONFIGURED, 1),
    ProviderFault("403", _MISCONFIGURED, 1),
    ProviderFault("404", _MISCONFIGURED, 1),
    ProviderFault("redirect", _MISCONFIGURED, 1),
    ProviderFault("no_usage", _OK, 1, _OK),
    ProviderFault("data_url", _OK, 1, _OK),
    ProviderFault("url_safe", _OK, 1, _OK),
    ProviderFault("images=2", _OK, 1, _OK),
    ProviderFault("url", _OK, 1, _OK),
    ProviderFault("url:get=cut:fails=1", _OK, 1, _OK),
    ProviderFault("url:get=503", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("url:get=endless", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("url:get=gif", _UNAVAILABLE, 1, _UNKNOWN),
)
STREAM_FAULTS = (
    *(ProviderFault(f"stream_end={number}", _UNKNOWN, 1, _UNKNOWN) for number in range(3)),
    *(ProviderFault(f"stream_drop={number}", _UNKNOWN, 1, _UNKNOWN) for number in range(3)),
    *(ProviderFault(f"stream_error={number}", _UNAVAILABLE, 1, _UNKNOWN) for number in range(3)),
    *(ProviderFault(f"stream_error={number}:flat", _UNAVAILABLE, 1, _UNKNOWN) for number in range(3)),
    ProviderFault("stream_error=0:code=moderation_blocked", "FAILED_PRECONDITION PROMPT_REFUSED", 1),
    ProviderFault("stream_error=1:code=moderation_blocked", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("stream_error=2:code=moderation_blocked", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("stream_empty", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("stream_bad_base64", _UNAVAILABLE, 1, _UNKNOWN),
    ProviderFault("stream_truncated", _UNAVAILABLE, 1, _UNKNOWN),
    *(ProviderFault(f"hold={number}", _TIMEOUT, 1, _UNKNOWN) for number in range(3)),
    ProviderFault("503:times=2", _OK, 3, _OK),
    ProviderFault("stream_url", _OK, 1, _OK),
    ProviderFault("stream_empty=0", _OK, 1, _OK),
    ProviderFault("stream_bad_base64=0", _OK, 1, _OK),
    ProviderFault("stream_truncated=1", _OK, 1, _OK),
    *(
        ProviderFault(f"stream_{form}", _OK, 1, _OK)
        for form in ("crlf", "unterminated", "comments", "multiline", "joined", "bytes", "done", "repeated", "ignored")
    ),
)
"""Those of a stream with two partial images, the events 0 and 1."""
EDIT_FAULTS = (
    ProviderFault("body_drop=1000000", _UNAVAILABLE, 0),
    ProviderFault("body_drop=1000000:times=2", _OK, 1, _OK),
    *FAULTS,
)
"""Those of a provider that is sent an input."""
_REFUSALS = frozenset(fault.told.rpartition(" ")[2] for fault in FAULTS if fault.told != _OK)
_PROVIDER_TIMEOUT = 3.0
"""Seconds that all answers which come at all must take less than, also on a machine that stands still for a moment."""
_DEADLINE = 10.0


def faulty_answers(
    bench: Bench, database_url: str | None, *, rounds: int, faults: Sequence[ProviderFault] = FAULTS
) -> Outcome:
    """Have the provider fail in these ways, and count how often it is asked."""
    outcome = Outcome(f"the provider fails, in {len(FAULTS)} ways")
    return _faulty(bench, database_url, faults, rounds, outcome, partial_images=0)


def faulty_streams(
    bench: Bench, database_url: str | None, *, rounds: int, faults: Sequence[ProviderFault] = STREAM_FAULTS
) -> Outcome:
    """Have the provider's stream fail at every event, in these ways, and count how often it is asked."""
    outcome = Outcome(f"the provider's stream of partial images fails, in {len(STREAM_FAULTS)} ways")
    return _faulty(bench, database_url, faults, rounds, outcome, partial_images=2)


def faulty_edits(
    bench: Bench, database_url: str | None, *, rounds: int, faults: Sequence[ProviderFault] = EDIT_FAULTS
) -> Outcome:
    """Have the provider of edits fail in these ways, also while it is sent their inputs."""
    outcome = Outcome(f"the provider of edits fails, in {len(EDIT_FAULTS)} ways")
    return _faulty(bench, database_url, faults, rounds, outcome, partial_images=0, is_edit=True)


def faulty_streams_of_edits(bench: Bench, database_url: str | None, *, rounds: int) -> Outcome:
    """Have the stream of an edit fail at every event."""
    outcome = Outcome(f"the provider's stream of an edit fails, in {len(STREAM_FAULTS)} ways")
    return _faulty(bench, database_url, STREAM_FAULTS, rounds, outcome, partial_images=2, is_edit=True)


def _faulty(
    bench: Bench,
    database_url: str | None,
    faults: Sequence[ProviderFault],
    rounds: int,
    outcome: Outcome,
    *,
    partial_images: int,
    is_edit: bool = False,
) -> Outcome:
    site = bench.site(database_url, PIXYPROXY_PROVIDER_TIMEOUT=f"{_PROVIDER_TIMEOUT:g}")
    small, large = _make_inputs(site) if is_edit else ([], [])
    with site.server() as server:
        for _ in range(rounds):
            for fault in faults:
                inputs = large if fault.word.startswith("body_") else small
                _try(site, server, fault, outcome, partial_images, inputs)
        audit(site, server, outcome, Expected(unknown=True, refused=_REFUSALS))
    return outcome


def _make_inputs(site: Site) -> tuple[list[Wish], list[Wish]]:
    """Make a small input and one that is larger than what the system takes off its sender at once."""
    small, large = site.wish(), site.wish("large=25000000")
    with site.server(PIXYPROXY_PROVIDER_TIMEOUT=f"{WAIT_TIMEOUT:g}") as server:
        for wish in (small, large):
            answer = site.create(server, wish)
            assert answer.is_ok, answer.as_told
    return [small], [large]


def _try(
    site: Site,
    server: RunningServer,
    fault: ProviderFault,
    outcome: Outcome,
    partial_images: int,
    inputs: Sequence[Wish],
) -> None:
    wish = site.wish(fault.word, partial_images=partial_images, inputs=inputs)
    answer = site.create(server, wish, _DEADLINE)
    failed_at = time.monotonic()
    submissions = site.stand_in.count(wish.prompt)
    outcome.injected += 1
    outcome.expect(answer.as_told == fault.told, f"[{fault.word}] {answer.as_told} in place of {fault.told}")
    outcome.expect(submissions == fault.submissions, f"[{fault.word}] submitted {submissions} times")
    outcome.expect(
        fault.retry_after in (None, answer.retry_after), f"[{fault.word}] to be tried again in {answer.retry_after} s"
    )
    # An answer in between keeps the circuit closed, which is another fault's matter.
    good = site.create(server, site.wish())
    outcome.expect(good.is_ok, f"the next one after [{fault.word}]: {good.as_told}")
    outcome.recovered(time.monotonic() - failed_at)
    if fault.then:
        again = site.create(server, wish, _DEADLINE)
        outcome.expect(again.as_told == fault.then, f"[{fault.word}] then {again.as_told}")
        is_ambiguous = fault.then == _UNKNOWN
        outcome.expect(not is_ambiguous or site.stand_in.count(wish.prompt) == 1, f"[{fault.word}] submitted again")


def unreachable(bench: Bench, database_url: str | None, *, times: int, calls: int) -> Outcome:
    """Have nobody at the provider's address, until the circuit opens and closes again."""
    outcome = Outcome("the provider cannot be reached")
    address = urlsplit(bench.stand_in.base_url)
    assert address.hostname is not None
    assert address.port is not None
    quick: list[float] = []
    for _ in range(times):
        with tcp_proxy(address.hostname, address.port) as network:
            site = bench.site(database_url, OPENAI_BASE_URL=f"http://127.0.0.1:{network.port}/v1")
            with site.server() as server:
                network.refuse()
                outcome.injected += 1
                quick += _open_circuit(site, server, calls, outcome)
                network.resume()
                _wait_until_closed(site, server, outcome)
                audit(site, server, outcome, Expected())
    outcome.measured["a call while the circuit is open"] = quick
    outcome.expect(statistics.median(quick) < 0.1, f"an open circuit took {statistics.median(quick):.3f} s to tell")
    return outcome


def _open_circuit(site: Site, server: RunningServer, calls: int, outcome: Outcome) -> list[float]:
    """Fail until calls are refused at once, and return how long further ones take."""

    def is_open() -> bool:
        answer = site.create(server, site.wish())
        outcome.expect(answer.as_told == _UNAVAILABLE, f"nobody is there: {answer.as_told}")
        return answer.retry_after is not None

    wait_until(is_open, WAIT_TIMEOUT, "the circuit to open")
    answers = [site.create(server, site.wish()) for _ in range(calls)]
    for answer in answers:
        outcome.expect(answer.as_told == _UNAVAILABLE, f"the circuit is open: {answer.as_told}")
        outcome.expect(answer.retry_after is not None, "an open circuit does not say when to try again")
    return [answer.seconds for answer in answers]


def _wait_until_closed(site: Site, server: RunningServer, outcome: Outcome) -> None:
    returned_at = time.monotonic()
    wish = site.wish()
    wait_until(lambda: site.create(server, wish).is_ok, WAIT_TIMEOUT, "the circuit to close")
    outcome.recovered(time.monotonic() - returned_at)
