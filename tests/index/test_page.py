"""The page in a real browser: by keyboard, at the width of a phone, for those who cannot see it, without a network."""

import shutil
import threading
from contextlib import contextmanager

import pytest

import bags
from abridged.index.build import build
from abridged.index.search import Searcher
from abridged.index.serve import serve
from bags import Bags
from colours import Pooled

pytestmark = pytest.mark.engine
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def shown(searcher):
    """The page of a running server in a window as wide as a phone, and what it asked for."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    server = serve(searcher)
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


@pytest.fixture
def page(model, folder):
    build(model, folder, embedder=Pooled)
    with shown(Searcher(model, folder, embedder=Pooled)) as found:
        yield found


@pytest.fixture
def texts_page(model, tmp_path):
    notes = bags.write(tmp_path / "notes", {**bags.NOTES, "long.txt": f"{'x' * 300} <b>harbour</b> & so on"})
    build(model, notes, embedder=Bags)
    with shown(Searcher(model, notes, embedder=Bags)) as found:
        yield found


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_passages_are_shown_as_text(texts_page, scheme):
    page = texts_page
    page.emulate_media(color_scheme=scheme)
    until(page, "document.getElementById('next').hidden")
    assert "space to play" not in page.inner_text("#status")
    page.keyboard.type("to reset the lamp")
    page.keyboard.press("Enter")
    page.wait_for_selector("li")
    first = page.inner_text("li")
    assert "reset.md" in first
    assert "lines 5 – 9" in first
    assert "Then wait for a green light." in first
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement === document.querySelector('li')")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("Hit 1: reset.md, lines 5 – 9, ")
    page.keyboard.press(" ")
    page.keyboard.press("/")
    page.fill("#text", "harbour so on")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('li').innerText.includes('<b>harbour</b> & so on')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.querySelectorAll('video, b').length") == 0
    assert [fault for fault in page.faults if "favicon" not in fault] == []
