"""A server and the page behind Envoy, and Chromium to open it with."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize, expect, sync_playwright

from tests.gallery.site import running_gallery
from tests.support.addresses import free_addresses
from tests.support.chromium import chromium_program
from tests.support.openai_stand_in import RunningStandIn, start_stand_in
from tests.support.servers import RunningServer, running_server

MAX_QUEUED = 3
_TIMEOUT = 30_000
_HEIGHT = 800


@dataclass
class Site:
    """A server, and the page behind an Envoy that stays when the server goes.

    Attributes:
        url: of the page.
        api: host:port for browsers.
        stand_in: the provider.
        server: the server that runs now.
    """

    url: str
    api: str
    stand_in: RunningStandIn
    _folder: Path
    _address: str
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    server: RunningServer = field(init=False)

    def start(self) -> None:
        """Start the server, or start it again."""
        settings = {
            "PIXYPROXY_LISTEN": self._address,
            # The generation worker is then a process of its own, which tests stop.
            "PIXYPROXY_WORKERS": "2",
            "PIXYPROXY_MAX_QUEUED": str(MAX_QUEUED),
            "OPENAI_API_KEY": self.stand_in.api_key,
            "OPENAI_BASE_URL": self.stand_in.base_url,
        }
        self.server = self._stack.enter_context(running_server(self._folder, settings))

    def close(self) -> None:
        """Stop what runs."""
        self._stack.close()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Stop the generation worker, which generates images and makes thumbnails."""
        worker = self.server.stop_generation_worker()
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests: each has a user of its own."""
    server, api, page = free_addresses(3)
    folder = tmp_path_factory.mktemp("site")
    with start_stand_in() as stand_in:
        site = Site(f"http://{page}", api, stand_in, folder / "server", server)
        site.start()
        with contextlib.closing(site), running_gallery(folder, server, api=api, page=page):
            yield site


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    expect.set_options(timeout=_TIMEOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_program())
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(site: Site, browser: Browser) -> Iterator[OpenPage]:
    """Open the page. At the end it must have violated no policy, thrown no error, and called no other host."""
    with contextlib.ExitStack() as stack:
        problems: list[str] = []

        def note(message: ConsoleMessage) -> None:
            # The browser logs each request that fails or is refused, too.
            is_request = "Failed to load resource" in message.text or "CORS policy" in message.text
            if message.type == "error" and not is_request:
                problems.append(message.text)

        def note_host(request: Request, url: str) -> None:
            if not request.url.startswith((url, f"http://{site.api}/", "blob:")):
                problems.append(request.url)

        def open_it(width: int = 1280, url: str = site.url, color_scheme: Literal["light", "dark"] = "light") -> Page:
            viewport: ViewportSize = {"width": width, "height": _HEIGHT}
            context = browser.new_context(viewport=viewport, color_scheme=color_scheme)
            stack.callback(context.close)
            context.set_default_timeout(_TIMEOUT)
            page = context.new_page()
            page.on("console", note)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda request: note_host(request, url))
            page.goto(url)
            return page

        yield open_it
        assert problems == []
