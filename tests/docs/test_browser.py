"""The built documentation in a browser, at the widths of a phone and a desktop.

Needs Chromium, playwright and the built pages (``make browser``).
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[2] / "docs" / "_build" / "html"
FOUND = (shutil.which(name) for name in ("chromium", "google-chrome"))
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, FOUND), None)
PAGES = (
    "index",
    "user_guide/which_model",
    "user_guide/smoothed_risk",
    "user_guide/what_is_it_worth",
    "gallery/index",
    "gallery/without_folds",
    "experiments/trajectories",
    "notation",
    "api/index",
)
WIDTHS = {"phone": 390, "desktop": 1280}
# Without these Chromium looks for hosts of its own.
QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
)

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make browser"
)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)
if not (SITE / "index.html").exists():
    pytest.skip("the documentation is not built: make docs", allow_module_level=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page(name, width, browser, address):
    page = browser.new_page(viewport={"width": WIDTHS[width], "height": 900})
    wrong, remote = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: wrong.append(said.text) if said.type == "error" else None,
    )
    page.on("response", lambda r: wrong.append(r.url) if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith((address, "data:")) else remote.append(r.url)
        ),
    )
    page.goto(f"{address}/{name}.html", wait_until="networkidle")
    formulas = page.locator(".math").count()
    if formulas:
        page.wait_for_function(
            "document.querySelectorAll('.math').length <= "
            "document.querySelectorAll('.math mjx-container').length"
        )
    missing = page.evaluate(
        "[...document.images].filter(i => i.complete && !i.naturalWidth)"
        ".map(i => i.src)"
    )
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.close()
    assert wrong == []
    assert remote == [], "readers without a network miss something"
    assert missing == []
    assert overflow <= 1, "the page scrolls sideways"


def test_formulas_are_looked_for(browser, address):
    """A page of formulas has some, so that the test above can fail."""
    page = browser.new_page()
    page.goto(f"{address}/notation.html", wait_until="networkidle")
    assert page.locator(".math mjx-container").count() > 10
    page.close()
