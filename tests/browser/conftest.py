"""A browser, and what it looks at. Where it is missing, these tests are skipped; where CI is set, they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from serving import DESKTOP, Served, chromium, make_small_ledger, served, what_is_missing

from browsed import Browsed
from needs import demand
from processes import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


# Of a module, not of the session: while it is there, no other test of this process can call asyncio.run.
@pytest.fixture(scope="module")
def browser(needed: None) -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def needed() -> None:
    """Look whether a browser can be driven, before anything is made for it to look at."""
    demand(what_is_missing())


@pytest.fixture(scope="session")
def sample(needed: None, browsed: Browsed) -> Browsed:
    return browsed


@pytest.fixture(scope="session")
def server(sample: Browsed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    other = make_small_ledger(tmp_path_factory.mktemp("other") / "other.db")
    with served(sample.path, other) as found:
        yield found


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the text of axe-core, which finds what keeps people out of a page."""
    path = os.environ.get("TTASKS_AXE", "")
    demand(None if Path(path).is_file() else "TTASKS_AXE names no axe.min.js (npm install axe-core)")
    return Path(path).read_text("utf-8")


class Watched:
    """A page, and whatever it did that none of ours may do."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", lambda said: self._note(said.type in ("error", "warning"), f"console: {said.text}"))
        page.on("pageerror", lambda error: self._note(True, f"script: {error}"))
        page.on(
            "request", lambda asked: self._note(not asked.url.startswith((f"{url}/", "data:")), f"asked {asked.url}")
        )
        page.on("dialog", self._dismiss)
        page.add_init_script("addEventListener('securitypolicyviolation', (v) => console.error('CSP', v.blockedURI))")

    def _note(self, is_wrong: bool, text: str) -> None:
        if is_wrong:
            self.wrong.append(f"{self.page.url}: {text}")

    def _dismiss(self, dialog: Any) -> None:
        self._note(True, f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Return what opens a page of a server, in a window of a size and with other wishes of its reader."""
    contexts = []

    def opened(at: Served, path: str, size: tuple[int, int] = DESKTOP, **wishes: Any) -> Watched:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **wishes)
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        watched = Watched(context.new_page(), at.url)
        answer = watched.page.goto(f"{at.url}{path}")
        assert answer is not None and answer.status == 200, path
        return watched

    yield opened
    for context in contexts:
        context.close()
