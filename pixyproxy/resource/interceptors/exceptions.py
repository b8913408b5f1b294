"""The single exception handler: turns every error into a gRPC status. Nothing else aborts a call."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import NoReturn

import grpc
from grpc_status import rpc_status

from pixyproxy.core.request_context import request_id
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.statuses import is_foreseen, status_of

_logger = logging.getLogger(__name__)


class ExceptionInterceptor(AroundCalls):
    """Answers errors with a status, its details, and no more than that; the full cause goes to the log."""

    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> AbstractContextManager[None]:  # noqa: D102
        return _AnsweredErrors(context)


class _AnsweredErrors(AbstractContextManager[None]):
    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        if isinstance(error, grpc.RpcError):
            # gRPC's own way of ending a stream of requests whose caller has gone; it expects it back.
            _logger.info("The caller has gone.")
            return
        _log(error)
        if not self._context.is_active():
            _logger.info("The caller has gone.")
        # Then nobody is answered; but an error that went on from here, gRPC would log with a traceback.
        refuse(self._context, error, request_id.get())


def refuse(context: grpc.ServicerContext, error: Exception, call_id: str) -> NoReturn:
    """End a call with the status for an error."""
    context.abort_with_status(rpc_status.to_status(status_of(error, call_id)))


def leave(context: grpc.ServicerContext) -> NoReturn:
    """End a call that is cancelled, so that nobody is answered any more."""
    context.abort(grpc.StatusCode.CANCELLED, "")


def _log(error: Exception) -> None:
    if not is_foreseen(error):
        _logger.error("Not foreseen: %s", type(error).__name__, exc_info=error)
    elif error.__cause__ is not None:
        # The type of the cause is enough for the eye; its text, which may hold anything, is for debugging.
        _logger.info("%s because of %s", type(error).__name__, type(error.__cause__).__name__)
        _logger.debug("The cause in full", exc_info=error)
    else:
        _logger.info("%s", type(error).__name__)
