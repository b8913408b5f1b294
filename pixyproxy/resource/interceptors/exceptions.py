"""The single exception handler: turns every error into a gRPC status. Nothing else aborts a call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc
from grpc_status import rpc_status

from pixyproxy.core.request_context import call_id
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.statuses import is_foreseen, status_of

_CANCELLED = "The client has cancelled the call or lost its connection."

_logger = logging.getLogger(__name__)


class ExceptionInterceptor(AroundCalls):
    """Answers errors with a status and its details; the full cause goes to the log."""

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        try:
            yield
        except grpc.RpcError:
            # gRPC raises it from the stream of requests of a cancelled call, and expects it back.
            _logger.info(_CANCELLED)
            raise
        except Exception as error:
            _log(error)
            if not context.is_active():
                _logger.info(_CANCELLED)
            # Its traceback refers to the call, and several calls may share an error: a cycle that only the garbage
            # collection of the oldest objects would free. Until then gRPC counts the call as one of its connection.
            error.__traceback__ = None
            # Also in a cancelled call: gRPC would log any other exception with a traceback.
            refuse(context, error, call_id.get())


def refuse(context: grpc.ServicerContext, error: Exception, call_id: str) -> NoReturn:
    """End a call with the status for an error."""
    context.abort_with_status(rpc_status.to_status(status_of(error, call_id)))


def leave(context: grpc.ServicerContext) -> NoReturn:
    """End a call that is cancelled already."""
    context.abort(grpc.StatusCode.CANCELLED, "")


def _log(error: Exception) -> None:
    if not is_foreseen(error):
        _logger.error("Unexpected: %s", type(error).__name__, exc_info=error)
    elif error.__cause__ is not None:
        # The text of the cause may contain anything, so only DEBUG shows it.
        _logger.info("%s because of %s", type(error).__name__, type(error.__cause__).__name__)
        _logger.debug("The cause in full", exc_info=error)
    else:
        _logger.info("%s", type(error).__name__)
