"""Both clients of PixyProxy in Python, so that one test runs with either."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Self, cast

import pytest

from pixyproxy.client import AsyncContentStream, AsyncPixyProxyClient, PixyProxyClient

# As PixyProxyClient is called.
MakeClient = Callable[..., PixyProxyClient]


class _EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def iterate(self, iterator: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(iterator, self)  # Itself, which no iterator gives, stands for the end.

        while (item := self.run(following())) is not self:
            yield item

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Waiting:
    """An AsyncPixyProxyClient whose methods are waited for, as those of a PixyProxyClient are."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Outside of any event loop, as a program does that makes its client at import.
        self._client = AsyncPixyProxyClient(*arguments, **named)
        self._loop = _EventLoop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run(self._client.close())

    def __getattr__(self, name: str) -> Any:
        def method(*arguments: Any, **named: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **named)
            if isinstance(result, AsyncIterator):
                return self._loop.iterate(result)
            assert inspect.iscoroutine(result)
            result = self._loop.run(result)
            return _WaitingStream(result, self._loop) if isinstance(result, AsyncContentStream) else result

        return method


class _WaitingStream:
    def __init__(self, stream: AsyncContentStream, loop: _EventLoop) -> None:
        self._stream = stream
        self._loop = loop
        self.info = stream.info

    def __iter__(self) -> Iterator[bytes]:
        return self._loop.iterate(aiter(self._stream))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run(self._stream.__aexit__(*error))


KINDS: dict[str, MakeClient] = {"blocking": PixyProxyClient, "asyncio": cast(MakeClient, _Waiting)}


@pytest.fixture(params=KINDS)
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """What makes a client, of one kind and of the other."""
    return KINDS[request.param]
