"""Schedules the checks of sign-ins: each takes about 77 ms of a core and 64 MiB, and anybody can request one."""

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

# More concurrent checks gain no speed and take memory.
_MAX_CHECKS = 2
_MAX_WAITING = 64
_WAIT_SECONDS = 10.0
# The shortest interval at which a waiting sign-in checks whether the pause of a slowed address is over.
_SHORTEST_LOOK_SECONDS = 0.05


@dataclass
class _Round:
    """The place of an address or of a name in the round-robin, shared by all its waiting sign-ins."""

    number: int


@dataclass(eq=False)
class _SignIn:
    """One or more calls with the same credentials. ``has_left`` is set when they leave the queue."""

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
        """The sign-in with the lowest rank is checked first."""
        return not self.standing.is_known, self.address_round.number, self.name_round.number, self.number

    def refusal(self) -> PixyProxyException:
        if self.standing.is_slowed:
            return TooManySignInsError(
                "Too many sign-ins from your address have failed; this one was not checked. Try again.",
                retry_after=_WAIT_SECONDS,
            )
        return TooBusyError("Too many sign-ins in progress; try again.", retry_after=1.0)


class SignInQueue:
    """Checks two sign-ins at a time, in an order that a caller cannot improve by sending more.

    Names that are known at their address come first. The others are scheduled round-robin by address, and for each
    address by name. A slowed address has one check at a time, with a pause after each failure. If more than 64 sign-ins
    wait, the latest of the address with the most of them is refused.
    """

    def __init__(self, pause: float, wait: float = _WAIT_SECONDS) -> None:
        """Make an empty queue.

        Args:
            pause: seconds after each failure of a slowed address.
            wait: the most seconds that a sign-in waits.
        """
        self._pause = pause
        self._wait_seconds = wait
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[tuple[str, bytes], _SignIn] = {}
        self._checks = 0
        # When the pauses of slowed addresses end, by time.monotonic.
        self._pauses: dict[str, float] = {}

    def check(self, name: str, address: str, key: bytes, standing: Standing, check: Callable[[], Caller]) -> Caller:
        """Wait until this sign-in is scheduled, and return the result of ``check``.

        Waiting calls with the same credentials from the same address share one check.

        Args:
            name: the username.
            address: the client's address.
            key: identifies name and password.
            standing: the priority of the sign-in.
            check: checks the credentials; raises ``CredentialsInvalidError`` if they are wrong.

        Raises:
            TooBusyError: the sign-in was not checked in time, or too many wait.
            TooManySignInsError: the same, from a slowed address.
            Exception: an error of ``check``.
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
        # Each follower occupies a thread. After the first has signed in, the others need no check.
        if sign_in.standing.is_slowed and sum(other.followers for other in self._waiting.values()) >= _MAX_WAITING:
            raise sign_in.refusal()
        sign_in.followers += 1

    def _wait(self, sign_in: _SignIn) -> None:
        """Wait until a sign-in is scheduled or refused."""
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
        """Schedule waiting sign-ins while fewer than the limit are being checked."""
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
