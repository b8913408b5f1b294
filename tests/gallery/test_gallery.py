"""What a person does with the gallery, in Chromium."""

from __future__ import annotations

import os
import re
import signal
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Request, expect

from pixyproxy.core.fields import new_guid
from pixyproxy.data.stores.image_store import content_path
from tests.gallery.conftest import MAX_QUEUED, OpenPage, Site
from tests.support.generation_client import GenerationClient
from tests.support.image_client import ImageClient
from tests.support.image_files import encode
from tests.support.servers import Login
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.waiting import wait_until

_AXE = Path(__file__).parents[2] / "deploy/gallery/node_modules/axe-core/axe.min.js"
_MANY = 10_000
_MOST_NODES = 1_200
"""The most elements of the page, however many images there are."""
_MOST_URLS = 550
_TIMEOUT = 30.0

_COUNT_URLS = """
    window.urls = new Set();
    const { createObjectURL, revokeObjectURL } = URL;
    URL.createObjectURL = (data) => { const url = createObjectURL.call(URL, data); urls.add(url); return url; };
    URL.revokeObjectURL = (url) => { urls.delete(url); revokeObjectURL.call(URL, url); };
"""


@pytest.fixture
def login(site: Site) -> Login:
    return site.server.new_login()


def sign_in(page: Page, login: Login) -> None:
    page.get_by_label("Username").fill(login.username)
    page.get_by_label("Password").fill(login.password)
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_text("Signed in as")).to_be_visible()


def cells(page: Page) -> Locator:
    return page.locator("#grid button")


def expect_loaded(picture: Locator) -> None:
    expect(picture).to_have_js_property("complete", True)
    expect(picture).not_to_have_js_property("naturalWidth", 0)
    expect(picture).to_have_attribute("src", re.compile("^blob:"))


def expect_accessible(page: Page) -> None:
    """Check by axe, the rules of WCAG 2.2 AA."""
    page.evaluate(_AXE.read_text(encoding="utf-8"))
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("(runOnly) => axe.run({ runOnly })", rules)
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == []


def expect_no_overflow(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


WIDTHS = pytest.mark.parametrize("width", [360, 1280])


@WIDTHS
def test_create_by_keyboard(site: Site, open_page: OpenPage, login: Login, width: int) -> None:
    page = open_page(width)
    expect_no_overflow(page)
    expect_accessible(page)
    keyboard = page.keyboard
    keyboard.press("Tab")
    keyboard.type(login.username)
    keyboard.press("Tab")
    keyboard.type(login.password)
    keyboard.press("Enter")
    expect(page.get_by_text(f"Signed in as {login.username}")).to_be_visible()

    prompt = f"A storm {uuid.uuid4().hex} [[fault:hold=1,2]]"
    expect(page.get_by_label("Prompt")).to_be_focused()
    keyboard.type(prompt)
    keyboard.press("Tab")
    expect(page.get_by_role("checkbox")).to_be_focused()
    keyboard.press("Tab")
    expect(page.get_by_role("button", name="Create")).to_be_focused()
    keyboard.press("Enter")
    entry = page.locator("#generations li")
    expect(entry.get_by_role("status")).to_have_text("Generating")
    expect_loaded(entry.locator("img"))
    expect_no_overflow(page)
    first = entry.locator("img").get_attribute("src")
    site.stand_in.release(prompt)
    expect(entry.locator("img")).not_to_have_attribute("src", str(first))
    site.stand_in.release(prompt)
    expect(entry.get_by_role("status")).to_have_text("Done")
    expect(cells(page)).to_contain_text(prompt)
    expect(page.locator("#status")).to_have_text("1 image.")

    keyboard.press("Tab")
    expect(entry.get_by_role("button", name="View")).to_be_focused()
    keyboard.press("Enter")
    expect_loaded(page.get_by_role("dialog").locator("img"))


@WIDTHS
def test_find_and_view_by_keyboard(site: Site, open_page: OpenPage, login: Login, width: int) -> None:
    png = encode("png")
    guid = store_image(site.server, login, png, prompt="A lighthouse in a storm", filename="lighthouse.png").guid
    store_image(site.server, login, png, prompt="A castle in a storm")
    page = open_page(width)
    sign_in(page, login)
    expect(cells(page)).to_have_count(2)
    keyboard = page.keyboard
    page.get_by_label("Search").focus()
    keyboard.type("storm LIGHTHO")
    expect(cells(page)).to_have_count(1)
    expect(cells(page)).to_have_attribute("data-guid", guid)
    expect(page.locator("#status")).to_have_text("1 image.")
    expect_loaded(cells(page).locator("img"))
    expect_accessible(page)

    keyboard.press("Tab")
    expect(cells(page)).to_be_focused()
    assert cells(page).evaluate("(button) => getComputedStyle(button).outlineStyle") == "solid"
    keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("lighthouse.png")
    expect_loaded(dialog.locator("img"))
    expect(dialog.locator("progress")).to_be_hidden()
    expect_no_overflow(page)
    expect_accessible(page)
    keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(cells(page)).to_be_focused()


def test_placeholder_is_drawn_until_the_thumbnail_is_there(site: Site, open_page: OpenPage, login: Login) -> None:
    images = ImageClient(site.server, login)
    guid = images.import_image(encode("png", (300, 200))).guid
    wait_until(lambda: images.placeholder(guid), _TIMEOUT, "the placeholder")
    page = open_page()
    with site.resting():
        sign_in(page, login)
        expect(cells(page)).to_have_attribute("data-guid", guid)
        drawn = "(canvas) => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
        assert cells(page).locator("canvas").evaluate(drawn) > 2
        assert cells(page).locator("img").get_attribute("src") is None
    expect_loaded(cells(page).locator("img"))


def test_cancel(site: Site, open_page: OpenPage, login: Login) -> None:
    page = open_page()
    sign_in(page, login)
    with site.resting():
        page.get_by_label("Prompt").fill("A castle")
        page.get_by_role("button", name="Create").click()
        entry = page.locator("#generations li")
        expect(entry.get_by_role("status")).to_have_text("Queued")
        page.get_by_role("button", name="Cancel").press("Enter")
        expect(entry.get_by_role("status")).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(entry).to_be_focused()


def test_named_delay_is_kept(site: Site, open_page: OpenPage, login: Login) -> None:
    sent: list[Request] = []
    page = open_page()
    page.on("request", lambda request: sent.append(request) if request.url.endswith("/CreateGeneration") else None)
    page.clock.install()
    sign_in(page, login)
    others = [GenerationClient(site.server, site.server.new_login()) for _ in range(MAX_QUEUED)]
    with site.resting():
        queued = [other.start("in the queue") for other in others]
        page.get_by_label("Prompt").fill("A castle")
        page.get_by_role("button", name="Create").click()
        entry = page.locator("#generations li")
        problem = f"Too many generations are queued (limit {MAX_QUEUED}). (TOO_BUSY) Try again in 60 s."
        expect(entry.get_by_role("alert")).to_have_text(problem)
        others[0].cancel(queued[0].guid)
        tries = len([request for request in sent if request.method == "POST"])
        page.clock.fast_forward(50_000)
        assert len([request for request in sent if request.method == "POST"]) == tries == 1
        page.clock.fast_forward(10_000)
        expect(entry.get_by_role("status")).to_have_text("Queued")
        expect(entry.get_by_role("alert")).to_be_empty()
        page.get_by_role("button", name="Cancel").click()
        expect(entry.get_by_role("status")).to_have_text("Cancelled")
        for other, generation in zip(others[1:], queued[1:], strict=True):
            other.cancel(generation.guid)


def test_refused_prompt_shows_message_and_reason(site: Site, open_page: OpenPage, login: Login) -> None:
    page = open_page()
    sign_in(page, login)
    page.get_by_label("Prompt").fill("A castle [[fault:moderation_blocked]]")
    page.get_by_role("button", name="Create").click()
    entry = page.locator("#generations li")
    expect(entry.get_by_role("status")).to_have_text("Failed")
    expect(entry.get_by_role("alert")).to_contain_text("(PROMPT_REFUSED)")


def test_credentials_are_in_memory_only(site: Site, open_page: OpenPage, login: Login) -> None:
    page = open_page()
    page.get_by_label("Username").fill(login.username)
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#sign-in-problem")).to_contain_text("(CREDENTIALS_INVALID)")
    sign_in(page, login)
    assert page.get_by_label("Password").input_value() == ""
    kept = (
        "[localStorage.length, sessionStorage.length, document.cookie, location.search, location.hash, history.state]"
    )
    assert page.evaluate(kept) == [0, 0, "", "", "", None]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Username")).to_be_focused()
    sign_in(page, login)
    page.reload()
    expect(page.get_by_label("Username")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_be_hidden()


def test_private_images_go_at_sign_out(site: Site, open_page: OpenPage, login: Login) -> None:
    store_image(site.server, login, encode("png"), prompt="A secret castle")
    page = open_page()
    sign_in(page, login)
    expect(cells(page)).to_contain_text("A secret castle")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#status")).to_have_text("No images found.")
    expect(page.get_by_text("A secret castle")).to_have_count(0)


def test_colours_follow_the_system(open_page: OpenPage) -> None:
    colours = [
        open_page(color_scheme=scheme).evaluate("getComputedStyle(document.documentElement).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(22, 24, 28)"]


def test_markup_in_a_prompt_is_text(site: Site, open_page: OpenPage, login: Login) -> None:
    markup = "<img src=x onerror='window.ran = true'><script>window.ran = true</script><b>bold</b>"
    store_image(site.server, login, encode("png"), prompt=markup, filename="<i>name<i>.png", tags=["<u>tag</u>"])
    page = open_page()
    sign_in(page, login)
    expect(cells(page)).to_contain_text(markup)
    cells(page).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("#viewer-prompt")).to_have_text(markup)
    expect(dialog).to_contain_text("<u>tag</u>")
    expect_loaded(dialog.locator("img"))
    assert page.locator("b:not(#user), i, u").count() == 0
    assert page.evaluate("window.ran") is None


def test_calls_end_when_the_search_changes(site: Site, open_page: OpenPage, login: Login) -> None:
    page = open_page()
    sign_in(page, login)
    expect(page.locator("#status")).not_to_be_empty()
    stopped = site.server.rpc_workers
    for worker in stopped:
        os.kill(worker, signal.SIGSTOP)
    try:
        with page.expect_request("**/ListImages") as first:
            page.get_by_label("Search").type("c")
        with page.expect_event("requestfailed", lambda request: request == first.value) as failed:
            page.get_by_label("Search").type("a")
        assert failed.value.failure == "net::ERR_ABORTED"
    finally:
        for worker in stopped:
            os.kill(worker, signal.SIGCONT)
    expect(page.locator("#status")).to_have_text("No images found.")


@pytest.fixture(scope="module")
def many(site: Site) -> Login:
    """A user with very many images, whose bytes are those of one file."""
    login = site.server.new_login()
    data = encode("png")
    one = store_image(site.server, login, data)
    folder = Path(site.server.env["PIXYPROXY_IMAGE_STORE"])
    now = datetime.now(UTC)
    details = []
    for number in range(1, _MANY):
        guid = new_guid()
        path = folder / content_path(guid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(folder / content_path(one.guid))
        sums = {"size_bytes": one.size_bytes, "sha256": one.sha256, "width": 80, "height": 48}
        created = now - timedelta(seconds=number)
        details.append(make_detail(login, guid=guid, prompt=f"number {number}", created_at=created, **sums))
    store_details(site.server, login, details)
    return login


@WIDTHS
def test_ten_thousand_images(site: Site, open_page: OpenPage, many: Login, width: int) -> None:
    page = open_page(width)
    page.evaluate(_COUNT_URLS)
    sign_in(page, many)
    cells(page).first.focus()

    def at_the_end() -> bool:
        page.keyboard.press("Control+End")
        assert page.locator("*").count() <= _MOST_NODES
        shown: str = page.locator("#status").inner_text()
        return shown == f"{_MANY} images."

    wait_until(at_the_end, 120, "the last page")
    page.keyboard.press("Control+End")
    last = cells(page).filter(has_text=f"number {_MANY - 1}")
    expect(last).to_be_focused()
    expect_loaded(last.locator("img"))
    for _ in range(30):
        page.keyboard.press("PageUp")
        expect_loaded(page.locator("#grid button:focus img"))
    assert page.locator("*").count() <= _MOST_NODES
    assert page.evaluate("urls.size") <= _MOST_URLS


def test_server_away_and_back(site: Site, open_page: OpenPage, login: Login) -> None:
    store_image(site.server, login, encode("png"), prompt="A lighthouse")
    page = open_page()
    sign_in(page, login)
    expect_loaded(cells(page).locator("img"))
    assert site.server.stop() == 0
    page.get_by_label("Search").fill("castle")
    expect(page.locator("#problem")).to_have_text("The server cannot be reached.")
    expect(cells(page)).to_have_count(1)
    expect_accessible(page)
    site.start()
    page.get_by_role("button", name="Try again now").click()
    expect(page.locator("#status")).to_have_text("No images found.")
    expect(page.locator("#problem")).to_be_empty()
    expect(page.get_by_role("button", name="Try again now")).to_be_hidden()


def test_watch_goes_on_after_a_restart(site: Site, open_page: OpenPage, login: Login) -> None:
    page = open_page()
    sign_in(page, login)
    prompt = f"A castle {uuid.uuid4().hex} [[fault:hold=2]]"
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Create").click()
    entry = page.locator("#generations li")
    expect_loaded(entry.locator("img"))
    # Its generation worker ends after the generation.
    site.server.terminate()
    expect(entry.get_by_role("alert")).not_to_be_empty()
    site.stand_in.release(prompt)
    assert site.server.process.wait(_TIMEOUT) == 0
    site.start()
    expect(entry.get_by_role("status")).to_have_text("Done")
    expect(entry.get_by_role("alert")).to_be_empty()
    assert site.stand_in.count(prompt) == 1


def _allowed_origin(site: Site, origin: str) -> str | None:
    """What Envoy answers to a browser that asks whether a page of this origin may call."""
    wanted = "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    with closing(HTTPConnection(site.api)) as connection:
        path = "/pixyproxy.v1.ImageService/ListImages"
        connection.request("OPTIONS", path, headers={"Origin": origin, **asked})
        return connection.getresponse().getheader("access-control-allow-origin")


def test_other_origins_are_refused(site: Site, open_page: OpenPage) -> None:
    assert _allowed_origin(site, site.url) == site.url
    assert _allowed_origin(site, "http://elsewhere.example") is None
    # The same page on another origin; the policy of the page allows the call.
    page = open_page(url=site.url.replace("127.0.0.1", "localhost"))
    expect(page.locator("#problem")).to_have_text("The server cannot be reached.")
