"""GetImage as a FastAPI service: JSON over HTTP/1.1, on uvicorn with uvloop.

``PEER_DRIVER`` says which driver it uses: asyncmy, or PixyProxy's own in threads.

It does what PixyProxy does, and with PixyProxy's own parts where these are not gRPC's or the driver's: HTTP Basic
credentials checked by the same remembered hash, the same query with the same scope over TLS, the same log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import _mysql_connector  # noqa: F401  before anything that loads OpenSSL
import asyncmy
import mysql.connector
import uvicorn
from argon2 import PasswordHasher
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import Caller
from pixyproxy.core.request_context import call_id
from pixyproxy.data.pool import ConnectionPool
from pixyproxy.resource.interceptors.request_log import new_call_id
from pixyproxy.service.sign_in.credential_cache import CredentialCache
from pixyproxy.serving.logs import set_up_logging

_POOL_SIZE = 16
_USER = "SELECT id, guid, username, password, class_key, updated_at FROM users WHERE username_key = %s"
IMAGE_QUERY = """
SELECT images.guid, users.username, images.filename, images.prompt, images.tags, images.visibility,
  images.content_type, images.size_bytes, images.sha256, images.width, images.height, images.model,
  images.input_tokens, images.output_tokens, images.total_tokens, images.created_at, images.updated_at
FROM images JOIN users ON users.id = images.author_id
WHERE images.guid = %s AND (images.visibility = 2 OR images.author_id = %s)
"""

FetchOne = Callable[..., Awaitable[tuple[Any, ...] | None]]
Close = Callable[[], Awaitable[None]]

_logger = logging.getLogger(__name__)
_known = CredentialCache()


class Image(BaseModel):
    """An image as it is shown."""

    guid: str
    author: str
    filename: str
    prompt: str
    tags: list[str]
    visibility: int
    content_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    model: str
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    created_at: datetime
    updated_at: datetime


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    open_database = _open_asyncmy if os.environ["PEER_DRIVER"] == "asyncmy" else _open_mysql_connector
    app.state.fetch_one, close = await open_database()
    app.state.checking = asyncio.Lock()
    set_up_logging("INFO")
    yield
    await close()


async def _open_asyncmy() -> tuple[FetchOne, Close]:
    url = urlsplit(os.environ["PIXYPROXY_DATABASE_URL"])
    tls = ssl.create_default_context()
    # As the MySQL client does by default: encrypted, without a look at the certificate.
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    pool = await asyncmy.create_pool(
        host=url.hostname,
        port=url.port,
        user=url.username,
        password=url.password,
        database=url.path.removeprefix("/"),
        maxsize=_POOL_SIZE,
        autocommit=True,
        ssl=tls,
    )

    async def fetch_one(sql: str, *values: object) -> tuple[Any, ...] | None:
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(sql, values)
            row: tuple[Any, ...] | None = await cursor.fetchone()
            return row

    async def close() -> None:
        pool.close()
        await pool.wait_closed()

    return fetch_one, close


async def _open_mysql_connector() -> tuple[FetchOne, Close]:
    url = urlsplit(os.environ["PIXYPROXY_DATABASE_URL"])

    def connect() -> Any:
        return mysql.connector.connect(
            host=url.hostname,
            port=url.port,
            user=url.username,
            password=url.password,
            database=url.path.removeprefix("/"),
            autocommit=True,
        )

    pool = ConnectionPool(connect, lambda connection: connection.close(), size=_POOL_SIZE, wait=5.0)

    def fetch(sql: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        connection, _ = pool.acquire()
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            row: tuple[Any, ...] | None = cursor.fetchone()
        pool.release(connection, reusable=True)
        return row

    async def fetch_one(sql: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = await run_in_threadpool(fetch, sql, values)
        return row

    async def close() -> None:
        pool.close()

    return fetch_one, close


class LoggedRequests:
    """Logs the start and the end of each request, as a plain ASGI layer: FastAPI's own middleware is slower."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        new_id = new_call_id()
        token = call_id.set(new_id)
        started = time.perf_counter()
        code = 500

        async def send_with_id(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"].append((b"x-request-id", new_id.encode()))
            await send(message)

        _logger.info("REQUEST START")
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _logger.info("REQUEST END %s %.1f ms", code, (time.perf_counter() - started) * 1000)
            call_id.reset(token)


app = FastAPI(lifespan=_lifespan, openapi_url=None)
app.add_middleware(LoggedRequests)


async def signed_in(request: Request) -> Caller:
    _, _, encoded = request.headers.get("authorization", "").partition(" ")
    username, _, password = base64.b64decode(encoded).decode().partition(":")
    key = _known.key_of(username, password)
    caller = _known.get(key)
    return caller if caller is not None else await _checked(request, username, password, key)


async def _checked(request: Request, username: str, password: str, key: bytes) -> Caller:
    # One check takes 64 MiB and a core for a while: the others wait, and find the outcome.
    async with request.app.state.checking:
        caller = _known.get(key)
        if caller is not None:
            return caller
        row = await request.app.state.fetch_one(_USER, username.encode())
        if row is None:
            raise HTTPException(401)
        user_id, guid, name, hashed, class_key, changed_at = row
        PasswordHasher().verify(hashed, password)
        caller = Caller(user_id=user_id, guid=guid, username=name, class_key=UserClass(class_key))
        _known.put(key, caller, changed_at, "")
        return caller


@app.get("/images/{guid}")
async def get_image(guid: str, request: Request, caller: Annotated[Caller, Depends(signed_in)]) -> Image:
    row = await request.app.state.fetch_one(IMAGE_QUERY, guid, caller.user_id)
    if row is None:
        raise HTTPException(404)
    values = dict(zip(Image.model_fields, row, strict=True))
    values["tags"] = json.loads(values["tags"])
    return Image(**values)


@app.get("/health")
async def health() -> str:
    return "serving"


def main() -> None:
    """Serve with as many workers as the first argument says, until the process is ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threading.Thread(target=_announce, args=(port,), daemon=True).start()
    uvicorn.run(
        "benchmarks.peers.fastapi_service:app",
        port=port,
        workers=int(sys.argv[1]),
        access_log=False,
        log_level="warning",
    )


def _announce(port: int) -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except OSError:
            time.sleep(0.05)
        else:
            print(f"listening on 127.0.0.1:{port}", flush=True)
            return


if __name__ == "__main__":
    main()
