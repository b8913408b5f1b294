"""The scope of a gRPC call: its deadline and its cancellation."""

from __future__ import annotations

import grpc

from pixyproxy.core.call import CallScope

# Work ends before the client's deadline, so that the error still reaches the client.
_MARGIN_SECONDS = 0.1
_MARGIN_SHARE = 0.1
# Without a deadline gRPC reports a time that is hundreds of years ahead, longer than a thread can wait.
_NO_DEADLINE_SECONDS = 365 * 24 * 3600.0


def call_scope_of(context: grpc.ServicerContext) -> CallScope:
    """Return the scope of a call. It ends shortly before the deadline, or when the call is cancelled."""
    scope = CallScope(_timeout_of(context))
    if not context.add_callback(scope.leave):
        scope.leave()
    return scope


def _timeout_of(context: grpc.ServicerContext) -> float | None:
    remaining = context.time_remaining()
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return None
    return remaining - min(_MARGIN_SECONDS, remaining * _MARGIN_SHARE)
