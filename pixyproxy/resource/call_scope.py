"""The scope of a gRPC call, for work that asks whether its caller still waits."""

from __future__ import annotations

import grpc

from pixyproxy.core.call import CallScope

# Work ends this long before the caller's deadline, so that the answer, which says why, still arrives.
_MARGIN_SECONDS = 0.1
_MARGIN_SHARE = 0.1
# What gRPC says where the caller set no deadline lies hundreds of years ahead, further than a thread can wait.
_NO_DEADLINE_SECONDS = 365 * 24 * 3600.0


def call_scope_of(context: grpc.ServicerContext) -> CallScope:
    """Return the scope of a call: it ends shortly before its deadline, and when the caller cancels."""
    scope = CallScope(_timeout_of(context))
    if not context.add_callback(scope.leave):
        scope.leave()
    return scope


def _timeout_of(context: grpc.ServicerContext) -> float | None:
    remaining = context.time_remaining()
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return None
    return remaining - min(_MARGIN_SECONDS, remaining * _MARGIN_SHARE)
