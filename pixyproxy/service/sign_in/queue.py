"""Decides which sign-in is checked next: a check takes about 77 ms of a core and 64 MiB, and anyone can ask for one."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from pixyproxy.core.exceptions import CredentialsInvalidError, PixyProxyException, TooBusyError, TooManySignInsError
from pixyproxy.core.models import Caller
from pixyproxy.service.sign_in.throttle import Standing

# More at a time gain nothing and only take memory.
_MAX_CHECKS = 2
_MAX_WAITING = 64
_WAIT_SECONDS = 10.0
# How often a waiting sign-in looks whether the pause of a slowed address is over.
_SHORTEST_LOOK_SECONDS = 0.05


@dataclass
class _Round:
    """The place of an address or of a name in the round-robin, shared by all its waiting sign-ins."""

    number: int


@dataclass(eq=False)
class _SignIn:
    """One or more calls whose credentials wait to be checked. ``has_left`` is set when they no longer wait."""

    name: str
    address: str
    key: bytes
    standing: Standing
    number: int
    address_round: _Round
    name_round: _Round
    followers: int = 0
    has_left: threading.Event = field(default_factory=threading.Event)
    outcome: Future[Caller] = field(default_factory=Future)

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """The sign-in with the least rank is checked first."""
        return not self.standing.is_known, self.address_round.number, self.name_round.number, self.number

    def refusal(self) -> PixyProxyException:
        if self.standing.is_slowed:
            return TooManySignInsError(
                "Too many sign-ins from your address have failed, so that this one could not be checked; try again.",
                retry_after=_WAIT_SECONDS,
            )
        return TooBusyError("Too many sign-ins are being checked; try again.", retry_after=1.0)


class SignInQueue:
    """Checks two sign-ins at a time, in an order that nobody can change by asking often.

    Names that have signed in from their address before come first. The others are served round-robin by address, and of
    each address by name. Of a slowed address one sign-in is checked at a time, with a pause after each that fails. When
    more than 64 wait, the address with the most of them loses its latest.
    """

    def __init__(self, pause: float, wait: float = _WAIT_SECONDS) -> None:
        """Pause for so many seconds after each failure of a slowed address; let sign-ins wait for at most ``wait``."""
        self._pause = pause
        self._wait_seconds = wait
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[tuple[str, bytes], _SignIn] = {}
        self._checks = 0
        # Until when slowed addresses pause, by time.monotonic.
        self._pauses: dict[str, float] = {}

    def check(self, name: str, address: str, key: bytes, standing: Standing, check: Callable[[], Caller]) -> Caller:
        """Call ``check`` when it is this sign-in's turn, and return what it returns.

        Calls with the same credentials from the same address that wait at the same time share one check.

        Args:
            name: the name to sign in with.
            address: the client's address.
            key: stands for name and password.
            standing: what is known of the sign-in.
            check: raises ``CredentialsInvalidError`` where the credentials are wrong.

        Raises:
            TooBusyError: the sign-in was not checked in time, or too many wait.
            TooManySignInsError: the same, from a slowed address.
            Exception: what ``check`` raises.
        """
        with self._lock:
            sign_in = self._waiting.get((address, key))
            is_first = sign_in is None
            if sign_in is None:
                sign_in = self._enter(name, address, key, standing)
            else:
                self._follow(sign_in)
        if is_first:
            self._wait(sign_in)
            if not sign_in.outcome.done():
                self._run(sign_in, check)
        return sign_in.outcome.result()

    def _enter(self, name: str, address: str, key: bytes, standing: Standing) -> _SignIn:
        number = next(self._numbers)
        of_address = [other for other in self._waiting.values() if other.address == address]
        of_name = [other for other in of_address if other.name == name]
        sign_in = _SignIn(
            name,
            address,
            key,
            standing,
            number,
            address_round=of_address[0].address_round if of_address else _Round(number),
            name_round=of_name[0].name_round if of_name else _Round(number),
        )
        self._waiting[address, key] = sign_in
        self._begin()
        if len(self._waiting) > _MAX_WAITING:
            self._refuse_one()
        return sign_in

    def _follow(self, sign_in: _SignIn) -> None:
        # Each holds a thread. The first of them is enough to sign in: the others then need no check.
        if sign_in.standing.is_slowed and sum(other.followers for other in self._waiting.values()) >= _MAX_WAITING:
            raise sign_in.refusal()
        sign_in.followers += 1

    def _wait(self, sign_in: _SignIn) -> None:
        """Wait until a sign-in is to be checked, or is refused."""
        end = time.monotonic() + self._wait_seconds
        look = max(_SHORTEST_LOOK_SECONDS, self._pause)
        while not sign_in.has_left.wait(min(look, end - time.monotonic())):
            with self._lock:
                self._begin()
                if time.monotonic() >= end and not sign_in.has_left.is_set():
                    self._refuse(sign_in)

    def _run(self, sign_in: _SignIn, check: Callable[[], Caller]) -> None:
        has_failed = False
        try:
            sign_in.outcome.set_result(check())
        except BaseException as error:
            has_failed = isinstance(error, CredentialsInvalidError)
            sign_in.outcome.set_exception(error)
        with self._lock:
            self._checks -= 1
            if sign_in.standing.is_slowed:
                now = time.monotonic()
                self._pauses[sign_in.address] = now + self._pause if has_failed else now
                self._pauses = {address: end for address, end in self._pauses.items() if end > now}
            self._begin()

    def _begin(self) -> None:
        """Let those begin whose turn it is."""
        now = time.monotonic()
        while self._checks < _MAX_CHECKS:
            ready = [
                sign_in
                for sign_in in self._waiting.values()
                if not sign_in.standing.is_slowed or self._pauses.get(sign_in.address, now) <= now
            ]
            if not ready:
                return
            sign_in = min(ready, key=lambda sign_in: sign_in.rank)
            sign_in.address_round.number = sign_in.name_round.number = next(self._numbers)
            if sign_in.standing.is_slowed:
                self._pauses[sign_in.address] = math.inf
            self._checks += 1
            self._leave(sign_in)

    def _refuse_one(self) -> None:
        of_address = Counter(sign_in.address for sign_in in self._waiting.values())
        of_name = Counter((sign_in.address, sign_in.name) for sign_in in self._waiting.values())
        self._refuse(
            max(
                self._waiting.values(),
                key=lambda sign_in: (
                    not sign_in.standing.is_known,
                    of_address[sign_in.address],
                    of_name[sign_in.address, sign_in.name],
                    sign_in.number,
                ),
            )
        )

    def _refuse(self, sign_in: _SignIn) -> None:
        sign_in.outcome.set_exception(sign_in.refusal())
        self._leave(sign_in)

    def _leave(self, sign_in: _SignIn) -> None:
        del self._waiting[sign_in.address, sign_in.key]
        sign_in.has_left.set()
