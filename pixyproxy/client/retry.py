"""When a failed call is made again.

What no server answered is repeated by gRPC itself, as service_config.json says, but for creations, of which gRPC cannot
know that it is safe. Once a server has answered, gRPC repeats nothing. The rest is done here.
"""

from __future__ import annotations

import logging
import random
import time

from pixyproxy.client.errors import PixyProxyClientError, UnavailableError

# The server says of these that nothing was done.
_NOTHING_DONE = frozenset({"TOO_BUSY", "CONFLICT"})
# The server has tried again by itself, and names a time where it knows one.
_PROVIDER_BUSY = frozenset({"PROVIDER_RATE_LIMITED", "PROVIDER_UNAVAILABLE"})
# As often, and after such pauses, as gRPC does with other calls.
_ATTEMPTS_WITHOUT_ANSWER = 5
_FIRST_PAUSE_WITHOUT_ANSWER = 0.5
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_JITTER = 0.25

_logger = logging.getLogger(__name__)


class Reach:
    """Whether there ever was a server at the address: one that was is waited for, because it is being restarted.

    Attributes:
        is_proven: whether it has answered.
    """

    def __init__(self) -> None:
        self.is_proven = False


class Retry:
    """The attempts of one call, within one deadline.

    Attributes:
        is_repeatable: whether the call does no more when it is made twice than when it is made once.
    """

    def __init__(
        self, timeout: float | None, reach: Reach, *, is_repeatable: bool, is_repeated_by_grpc: bool = True
    ) -> None:
        """Begin.

        Args:
            timeout: seconds for all attempts together; None for no limit.
            reach: what is known of the server; kept up to date.
            is_repeatable: as above.
            is_repeated_by_grpc: whether gRPC repeats the call where no server answers.
        """
        self._end = None if timeout is None else time.monotonic() + timeout
        self.is_repeatable = is_repeatable
        self._reach = reach
        self._attempts_without_answer = 1 if is_repeated_by_grpc else _ATTEMPTS_WITHOUT_ANSWER
        self._pauses = 0

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, or None for no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def wait_after(self, error: PixyProxyClientError) -> None:
        """Wait until it makes sense to make the call again.

        Raises:
            PixyProxyClientError: ``error``, where that makes no sense, or not in time.
        """
        self._reach.is_proven |= bool(error.request_id)
        pause = self._pause_after(error)
        remaining = self.remaining
        if pause is None or (remaining is not None and pause >= remaining):
            raise error
        _logger.info("Trying again in %.1f s: %s", pause, error.message)
        time.sleep(pause)

    def _pause_after(self, error: PixyProxyClientError) -> float | None:
        if error.reason in _NOTHING_DONE:
            return self._pause(error)
        if not self.is_repeatable:
            return None
        if error.reason in _PROVIDER_BUSY:
            return None if error.retry_after is None else self._pause(error)
        if isinstance(error, UnavailableError):
            return self._pause(error) if self._reach.is_proven else self._pause_without_answer()
        return None

    def _pause_without_answer(self) -> float | None:
        """Return how long to wait for a server that never was there, and perhaps is nowhere; None to give up."""
        self._attempts_without_answer -= 1
        if self._attempts_without_answer == 0:
            return None
        pause: float = _FIRST_PAUSE_WITHOUT_ANSWER * 2**self._pauses
        self._pauses += 1
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

    def _pause(self, error: PixyProxyClientError) -> float:
        """Return the time that the server names, or else one that doubles; at random, so that callers spread."""
        if error.retry_after is not None:
            return error.retry_after * (1 + random.uniform(0, _JITTER))  # noqa: S311
        self._pauses += 1
        return random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._pauses))  # noqa: S311
