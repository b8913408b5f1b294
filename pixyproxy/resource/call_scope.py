"""The scope of a gRPC call, for work that asks whether its caller still waits."""

from __future__ import annotations

import grpc

from pixyproxy.core.call import CallScope

# Work ends this long before the caller's deadline, so that the answer, which says why, still arrives.
_MARGIN_SECONDS = 0.1
_MARGIN_SHARE = 0.1


def call_scope_of(context: grpc.ServicerContext) -> CallScope:
    """Return the scope of a call: it ends shortly before its deadline, and when the caller cancels."""
    remaining = context.time_remaining()
    # Without a deadline gRPC gives a time in the far future, or None.
    if remaining is not None:
        remaining = max(0.0, remaining - min(_MARGIN_SECONDS, remaining * _MARGIN_SHARE))
    scope = CallScope(remaining)
    if not context.add_callback(scope.leave):
        scope.leave()
    return scope
