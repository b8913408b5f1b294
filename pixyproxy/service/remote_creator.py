"""Has images made by the maker, a process of its own; this is what the workers have of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import OutcomeUnknownError, PixyProxyException, ProviderTimeoutError, TooBusyError
from pixyproxy.core.models import Caller, Image, ImageCreation
from pixyproxy.core.request_context import request_id, trace_id
from pixyproxy.service.creation import still_under_way
from pixyproxy.service.handover import Handover, Line, LineBrokenError, Order
from pixyproxy.service.interfaces import ImageCreatorInterface

# A maker that has died is replaced within a second; one that dies again and again, after half a minute at most.
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_RETRY_SECONDS = 5.0


_logger = logging.getLogger(__name__)


class RemoteCreator(ImageCreatorInterface):
    """Hands requests to the maker, and to the next one where it dies and the request says which one it is."""

    def __init__(
        self, handover: Handover, trace_headers: Callable[[], Mapping[str, str]], patience: float = _PATIENCE_SECONDS
    ) -> None:
        """Hand over nothing yet.

        Args:
            handover: the way to the maker.
            trace_headers: gives what makes others' work a part of the running call's trace.
            patience: seconds to wait for a maker that takes the request.
        """
        self._handover = handover
        self._trace_headers = trace_headers
        self._patience = patience

    def create(self, creation: ImageCreation, author: Caller, call: CallScope) -> Image:  # noqa: D102  inherited
        order = self._order(creation, author, call)
        while True:
            with closing(self._hand_over(order, call)) as line:
                try:
                    outcome = line.receive(call.remaining())
                except TimeoutError:
                    raise still_under_way() from None
                except LineBrokenError:
                    if call.is_over:
                        raise still_under_way() from None
                    if creation.request_id is None:
                        raise _outcome_unknown() from None
                    # The next maker finds by its id how far this request has come.
                    _logger.warning("The maker has gone; the request is handed to the next one.")
                    continue
            if isinstance(outcome, PixyProxyException):
                raise outcome
            assert isinstance(outcome, Image)  # noqa: S101  for the type alone
            return outcome

    def _order(self, creation: ImageCreation, author: Caller, call: CallScope) -> Order:
        remaining = call.remaining()
        return Order(
            creation=creation,
            author=author,
            ends_at=None if remaining is None else time.monotonic() + remaining,
            request_id=request_id.get(),
            trace_id=trace_id.get(),
            trace_headers=self._trace_headers(),
        )

    def _hand_over(self, order: Order, call: CallScope) -> Line:
        """Give an order to a maker, and return the line on which it will say what came of it.

        Raises:
            TooBusyError: there is no maker for too long.
            ProviderTimeoutError: the caller has gone, or its time is over.
        """
        give_up_at = time.monotonic() + self._patience
        while True:
            line = self._try_to_hand_over(order, call, give_up_at)
            if line is not None:
                return line
            call.wait(_PAUSE_SECONDS)
            if call.is_over:
                raise ProviderTimeoutError("The time was over before the image could be asked for.")
            if time.monotonic() >= give_up_at:
                raise TooBusyError("No image can be begun just now; try again.", retry_after=_RETRY_SECONDS)

    def _try_to_hand_over(self, order: Order, call: CallScope, give_up_at: float) -> Line | None:
        """Return None where no maker has the order for certain."""
        try:
            line = self._handover.begin_line()
        except OSError:
            return None
        call.on_leaving(line.hang_up)
        patience = max(0.0, give_up_at - time.monotonic())
        remaining = call.remaining()
        try:
            line.receive(patience if remaining is None else min(patience, remaining))  # It is ready.
            line.send(order)
        except (TimeoutError, LineBrokenError):
            line.close()
            return None
        return line


def _outcome_unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "The process that worked on this request ended before it was done. Whether the provider made and billed an "
        "image is not known; to try again, and perhaps pay again, send the request once more."
    )
