"""The page in a real browser: by keyboard, at the width of a phone, for those who cannot see it, without a network."""

import shutil
import threading

import pytest

from abridged.index.build import build
from abridged.index.search import Searcher
from abridged.index.serve import serve
from colours import Pooled

pytestmark = pytest.mark.engine
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def page(model, folder):
    """The page of a running server in a window as wide as a phone, and what it asked for."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    build(model, folder, embedder=Pooled)
    server = serve(Searcher(model, folder, embedder=Pooled))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page(viewport={"width": 360, "height": 640})
        found.asked, found.faults = [], []
        found.on("request", lambda request: found.asked.append(request.url))
        found.on("console", lambda message: found.faults.append(message.text) if message.type == "error" else None)
        found.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        yield found
        browser.close()
    server.shutdown()
    server.server_close()


def until(page, what):
    """Wait for an expression to be true. (The page's policy forbids how Playwright itself waits.)"""
    for _ in range(200):
        if page.evaluate(what):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {what}")


def test_a_moment_is_found_and_played_by_keyboard_alone(page):
    keyboard = page.keyboard
    keyboard.type("red")
    keyboard.press("Tab")
    keyboard.type("green")
    keyboard.press("Enter")
    page.wait_for_selector("li")
    assert "hits in" in page.inner_text("#status")
    assert "red-green.mp4" in page.inner_text("li")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement === document.querySelector('li')")
    keyboard.press("ArrowDown")
    assert page.evaluate("[...document.querySelectorAll('li')].indexOf(document.activeElement)") == 1
    keyboard.press("ArrowUp")
    keyboard.press(" ")
    until(page, "document.querySelector('video').currentTime > 0.3")
    keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    assert {url.split("/")[2] for url in page.asked} == {page.url.split("/")[2]}
    assert [fault for fault in page.faults if "favicon" not in fault] == []


def test_a_clip_plays_from_its_beginning_to_its_end(page):
    page.fill("#text", "blue")
    page.keyboard.press("Enter")
    page.wait_for_selector("li")
    number, start, end = page.evaluate(
        "(() => { const all = [...document.querySelectorAll('li')];"
        "const n = all.findIndex((item) => item.innerText.includes('grey-blue'));"
        "const [, a, b] = all[n].querySelector('video').src.match(/t=([0-9.]+),([0-9.]+)/);"
        "return [n, Number(a), Number(b)]; })()"
    )
    assert (start, end) == (2, 4)
    video = f"document.querySelectorAll('video')[{number}]"
    page.evaluate(f"{video}.playbackRate = 4; {video}.play()")
    until(page, f"{video}.currentTime > 2.1")
    until(page, f"{video}.paused && Math.abs({video}.currentTime - 4) < 0.5")
    page.evaluate(f"{video}.playbackRate = 1; {video}.play()")
    until(page, f"!{video}.paused && Math.abs({video}.currentTime - 2.5) < 0.6")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(page, scheme):
    page.emulate_media(color_scheme=scheme)
    for text in ("", "blue"):
        page.fill("#text", text)
        page.keyboard.press("Enter")
        if text:
            page.wait_for_selector("li")
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_faults_are_said(page):
    page.fill("#text", "blue")
    page.route("**/search?*", lambda route: route.fulfill(status=400, json={"error": "the index is gone"}))
    page.keyboard.press("Enter")
    until(page, "document.getElementById('status').textContent.includes('the index is gone')")
