"""Own pages in a real browser: nothing breaks, nothing escapes, they follow what happens, and all can use them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from serving import DESKTOP, LEDGER, PAGES, PHONE, Kind, Served, make_small_ledger, served

from agents import Saying, fixed
from browsed import Browsed, a_live_run
from processes import PATIENCE_S, until
from ttasks import SQLiteStore, Task, TaskContext, TaskExecutor, TaskType, clock
from ttasks.events.agent_facts import ToolCallEnded

if TYPE_CHECKING:
    from conftest import Watched

Look = Callable[..., "Watched"]
CRAWLED_MAX = 60
FOLLOWS_MS = PATIENCE_S * 1000
EVERY_KIND = pytest.mark.parametrize("kind", PAGES, ids=[kind.name for kind in PAGES])


def own_links(watched: Watched) -> list[str]:
    """Return the addresses of pages of known kinds that a page leads to."""
    found = watched.page.eval_on_selector_all(
        "a[href]", "links => links.map(link => new URL(link.getAttribute('href'), location).href)"
    )
    paths = [f"{url.path}?{url.query}".rstrip("?") for url in map(urlsplit, found)]
    return [path for path in paths if any(kind.addresses.fullmatch(path.split("?")[0]) for kind in PAGES)]


def test_every_page_that_can_be_reached_from_the_home_is_there_and_keeps_to_itself(look: Look, server: Served) -> None:
    watched = look(server, LEDGER)
    seen, ahead = {LEDGER}, own_links(watched)
    while ahead and len(seen) < CRAWLED_MAX:
        path = ahead.pop(0)
        if path not in seen:
            seen.add(path)
            answer = watched.page.goto(f"{server.url}{path}")
            assert answer is not None and answer.status == 200, path
            ahead += own_links(watched)
    assert watched.wrong == []


@EVERY_KIND
def test_hostile_texts_stay_texts(look: Look, server: Served, sample: Browsed, kind: Kind) -> None:
    watched = look(server, kind.address(sample))
    watched.page.wait_for_load_state("networkidle")
    assert watched.wrong == []
    assert watched.page.locator("script:not([src]), img, iframe, object, [style], [onerror]").count() == 0


@EVERY_KIND
def test_every_page_has_a_title_one_heading_and_a_language(
    look: Look, server: Served, sample: Browsed, kind: Kind
) -> None:
    page = look(server, kind.address(sample)).page
    assert page.title().endswith(" · ttasks") and len(page.title()) > len(" · ttasks")
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


@EVERY_KIND
@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 640)], ids=["desktop", "phone", "narrow"])
def test_no_page_is_wider_than_its_window(
    look: Look, server: Served, sample: Browsed, kind: Kind, size: tuple[int, int]
) -> None:
    page = look(server, kind.address(sample), size).page
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


@EVERY_KIND
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_that_keeps_people_out(
    axe: str, look: Look, server: Served, sample: Browsed, kind: Kind, size: tuple[int, int], scheme: str
) -> None:
    page = look(server, kind.address(sample), size, color_scheme=scheme, reduced_motion="reduce").page
    page.evaluate(axe)
    found: list[dict[str, Any]] = page.evaluate("axe.run(document).then(report => report.violations)")
    assert [(each["id"], each["help"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []


# --- with the keyboard, and without scripts --------------------------------------------------------------------------


def test_the_keyboard_reaches_the_content_first_and_then_the_search(look: Look, server: Served) -> None:
    page = look(server, LEDGER).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")

    page = look(server, LEDGER).page
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "q":
            break
    page.keyboard.type("copy")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert urlsplit(page.url)[2:4] == (f"{LEDGER}/search", "q=copy")


def test_whatever_has_the_focus_can_be_seen(look: Look, server: Served) -> None:
    page = look(server, LEDGER).page
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@EVERY_KIND
def test_every_page_can_be_read_without_scripts(look: Look, server: Served, sample: Browsed, kind: Kind) -> None:
    with_scripts = look(server, kind.address(sample)).page.inner_text("h1")
    watched = look(server, kind.address(sample), java_script_enabled=False)
    assert watched.page.inner_text("h1") == with_scripts
    assert watched.page.locator("main a, main table, main p").count() > 0
    assert watched.wrong == []


# --- what happens meanwhile ------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a ledger that a test may write to."""
    return make_small_ledger(tmp_path / "ledger.db")


def test_the_home_follows_a_run_without_being_loaded_again(look: Look, small: Path, tmp_path: Path) -> None:
    with served(small) as at:
        watched = look(at, LEDGER)
        page = watched.page
        page.evaluate("window.isStillTheSame = true")
        running = page.locator("section[aria-labelledby=running]")
        assert running.inner_text().endswith("Nothing.")
        with a_live_run(small, tmp_path / "told"):
            title = running.get_by_role("link", name="live: waits to be told")
            title.wait_for(timeout=FOLLOWS_MS)
            assert (
                page.get_by_role("row", name="live: waits to be told").get_by_text("running", exact=True).count() == 1
            )
            title.focus()
            (tmp_path / "told").touch()
            page.get_by_role("row", name="live: waits to be told").get_by_text("succeeded", exact=True).wait_for(
                timeout=FOLLOWS_MS
            )
        running.get_by_text("Nothing.").wait_for(timeout=FOLLOWS_MS)
        assert page.evaluate("window.isStillTheSame")
        assert watched.wrong == []


def test_what_an_agent_does_is_followed_and_what_was_unfolded_stays_so(look: Look, tmp_path: Path) -> None:
    go_on = threading.Event()

    def handler(context: TaskContext) -> None:
        port = context._port
        assert port is not None
        for fact in fixed(Saying(1, clock.now())):
            is_first_end = isinstance(fact, ToolCallEnded) and not go_on.is_set()
            port.report(fact, at_once=is_first_end)
            if is_first_end:
                assert go_on.wait(PATIENCE_S)

    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor, served(path) as at:
        executor.register(TaskType.AGENT, handler)
        task = Task.agent("work", title="works")
        thread = threading.Thread(target=executor.execute, args=[task])
        thread.start()
        try:
            until(lambda: task.is_running)
            watched = look(at, f"{LEDGER}/task/{task.id}")
            steps = watched.page.locator(".step")
            output = steps.locator("details").first
            output.locator("summary").click(timeout=FOLLOWS_MS)
            before = steps.count()
            go_on.set()
            watched.page.get_by_text("I may not push").wait_for(timeout=FOLLOWS_MS)
            assert steps.count() > before
            assert output.get_attribute("open") is not None
            assert watched.wrong == []
        finally:
            go_on.set()
            thread.join(PATIENCE_S)


def test_a_server_that_is_told_to_ends_though_a_page_follows_it_and_the_page_says_so(look: Look, small: Path) -> None:
    with served(small) as at:
        page = look(at, LEDGER).page
        with page.expect_response(re.compile("_live=1")):
            page.bring_to_front()
        at.process.terminate()
        assert at.process.wait(PATIENCE_S) == 143
        page.get_by_text("The server does not answer").wait_for(timeout=FOLLOWS_MS)
