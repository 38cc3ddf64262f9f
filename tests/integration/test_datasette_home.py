"""The home of a ledger in Datasette, the list of ledgers, and who may see them."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from freezegun import freeze_time

from browsed import HOSTILE, Browsed
from pages import get, get_all
from ttasks import SQLiteStore, Task, TaskExecutionError, TaskExecutor, TaskGraph, clock
from ttasks.datasette_plugin import home
from ttasks.display import printable

HOME = "/-/ttasks/ledger"


def test_the_only_ledger_is_led_to(browsed: Browsed) -> None:
    answer = get(browsed.path, "/-/ttasks")
    assert answer.status == 302
    assert answer.headers["location"] == HOME


def test_several_ledgers_are_listed(browsed: Browsed, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    SQLiteStore(other).close()
    answer = get([browsed.path, other], "/-/ttasks")
    assert [link for link in answer.page.links if link.startswith("/-/ttasks/")] == [HOME, "/-/ttasks/other"]


def test_where_nothing_is_a_ledger_it_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    sqlite3.connect(path).execute("CREATE TABLE things (id INTEGER PRIMARY KEY)").connection.close()
    answers = get_all(path, "/-/ttasks", "/-/ttasks/shop", "/-/ttasks/nothing")
    assert "ttasks run" in answers[0].seen
    assert [answer.status for answer in answers] == [200, 404, 404]


def test_the_home_tells_the_latest_runs_with_outcome_and_where(browsed: Browsed) -> None:
    answer = get(browsed.path, HOME)
    assert answer.status == 200
    for graph in (browsed.ok, browsed.failed, browsed.wide, browsed.interrupted):
        assert any(link.startswith(f"{HOME}/graph/{graph}/run/") for link in answer.page.links), graph
    latest = answer.seen[answer.seen.index("Latest runs") :]
    assert latest.index("import of the night") < latest.index("300 tasks") < latest.index("build and publish")
    assert "294 succeeded, 5 failed, 1 blocked" in latest
    with sqlite3.connect(browsed.path) as connection:
        user, host = connection.execute("SELECT user, host FROM runners").fetchone()
    connection.close()
    assert f"{user}@{host}" in latest


def test_the_home_tells_what_was_interrupted_and_the_command_that_goes_on(browsed: Browsed) -> None:
    seen = get(browsed.path, HOME).seen
    told = seen[: seen.index("Running now")]
    assert "import of the night" in told
    assert "is gone" in told
    assert "1 finally task owed" in told
    assert f"ttasks resume {browsed.interrupted} --ledger {browsed.path}" in told


def test_the_home_tells_the_failures_of_the_last_day_once_each(browsed: Browsed) -> None:
    seen = get(browsed.path, HOME).seen
    failures = seen[seen.index("Failures of the last day") : seen.index("Latest tasks")]
    assert "no space left on device" in failures
    assert failures.count("copy nightly 3 exited with code 28: no space left on device") == 2  # the graph and its retry
    assert "by itself" not in failures


def test_failures_of_the_day_before_are_not_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    task = Task.bash("echo long ago >&2; exit 1", title="old")
    with freeze_time("2026-01-01 12:00:00"), SQLiteStore(path) as store, pytest.raises(TaskExecutionError):
        TaskExecutor(store).execute(task)
    with freeze_time("2026-01-02 11:59:00"):
        assert "long ago" in get(path, HOME).seen
    with freeze_time("2026-01-02 12:01:00"):
        assert "long ago" not in get(path, HOME).seen


def test_the_home_of_a_ledger_in_which_nothing_ran_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SQLiteStore(path).close()
    seen = get(path, HOME).seen
    assert "No graph was run yet." in seen
    assert "event 1" in seen


def test_the_home_is_live_and_its_token_changes_when_something_is_recorded_or_time_has_passed(
    browsed: Browsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    shutil.copy(browsed.path, path)
    before = get(path, f"{HOME}?_live=1").text
    assert get(path, f"{HOME}?_live=1").text == before
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=home.FOLLOWED_EVERY_S))
    assert get(path, f"{HOME}?_live=1").text != before
    monkeypatch.setattr(clock, "now", lambda: now)
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))
    assert get(path, f"{HOME}?_live=1").text != before
    ((_, main),) = [(tag, attributes) for tag, attributes in get(path, HOME).page.tags if tag == "main"]
    assert main["data-live"] == "?_live=1"  # relative to the page: a proxy may have put something before it
    assert main["data-token"]


def test_hostile_titles_are_text_and_nothing_else(browsed: Browsed) -> None:
    answer = get(browsed.path, HOME)
    assert printable(HOSTILE) in answer.seen
    assert "\x1b" not in answer.text
    assert "\u202e" not in answer.text
    assert {tag for tag, _ in answer.page.tags}.isdisjoint({"img", "iframe", "style"})
    scripts = [attributes for tag, attributes in answer.page.tags if tag == "script"]
    assert [set(each) for each in scripts] == [{"src", "defer"}]
    assert not [
        name for _, attributes in answer.page.tags for name in attributes if name == "style" or name[:2] == "on"
    ]


def test_own_pages_may_run_and_load_nothing_but_their_own(browsed: Browsed) -> None:
    output = f"{HOME}/task/{browsed.solo}/attempt/1/output.txt"
    leading = ["/-/ttasks", f"{HOME}/search?q={browsed.solo}"]
    for path in (HOME, f"{HOME}/graph/{browsed.ok}", f"{HOME}/graph/nothing", f"{HOME}?_live=1", output, *leading):
        headers = get(browsed.path, path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "allow",
    [
        {"databases": {"ledger": {"allow": {"id": "root"}}}},
        {"databases": {"ledger": {"tables": {"attempts": {"allow": False}}}}},
        {"allow": False},
    ],
)
def test_who_may_not_see_the_database_or_one_of_its_tables_sees_no_page(browsed: Browsed, allow: Any) -> None:
    pages = [HOME, f"{HOME}?_live=1", f"{HOME}/graph/{browsed.ok}"]
    answers = get_all(browsed.path, *pages, "/-/ttasks", metadata=allow)
    assert [answer.status for answer in answers[:-1]] == [403] * len(pages)
    assert "build and publish" not in "".join(answer.text for answer in answers)
    assert HOME not in answers[-1].page.links


@pytest.mark.parametrize("path", ["/nothing", "/a/b/c/d/e", "/ledger/nothing"])
def test_what_datasette_does_not_know_is_not_found_and_not_printed(browsed: Browsed, path: str, capfd: Any) -> None:
    assert get(browsed.path, path).status == 404
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_a_ledger_that_is_replaced_while_it_is_served_is_shown_as_it_is_now(tmp_path: Path) -> None:
    path, other = tmp_path / "ledger.db", tmp_path / "other.db"
    for file, title in ((path, "before"), (other, "after")):
        with SQLiteStore(file) as store:
            TaskGraph(title=title).run(TaskExecutor(store))

    async def ask() -> list[str]:
        datasette = Datasette([str(path)])
        with SQLiteStore(path):  # so that its readers keep their connections
            first = await datasette.client.get(HOME)
            other.replace(path)
        return [first.text, (await datasette.client.get(HOME)).text]

    first, second = asyncio.run(ask())
    assert (">before<" in first, ">after<" in first) == (True, False)
    assert (">before<" in second, ">after<" in second) == (False, True)


@pytest.mark.parametrize(
    ("page", "damage"),
    [
        ("graph/{failed}", "UPDATE attempts SET started_at = 'soon'"),
        ("search?q=copy", "UPDATE tasks SET created_at = 'soon'"),
        ("task/{hostile_task}", "UPDATE graph_tasks SET retry_policy = '[]'"),
        ("", "DELETE FROM graphs"),
    ],
)
def test_a_page_that_damaged_rows_can_not_be_made_into_says_so_and_is_no_more_open_than_others(
    browsed: Browsed, tmp_path: Path, page: str, damage: str
) -> None:
    path = tmp_path / "ledger.db"
    shutil.copy(browsed.path, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(damage)
    answer = get(path, f"{HOME}/{page.format(**vars(browsed))}".rstrip("/"))
    assert answer.status == 500
    assert "ttasks verify" in answer.seen
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")


def test_who_may_not_see_a_ledger_is_not_told_where_it_is_either(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SQLiteStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    refused, told = get(path, HOME, metadata={"allow": False}), get(path, HOME)
    assert (refused.status, told.status) == (403, 500)
    assert "schema_version" not in refused.text
    assert "a newer ttasks made it" in told.seen


def test_a_name_that_needs_escaping_in_an_address_is_found(browsed: Browsed, tmp_path: Path) -> None:
    path = tmp_path / "runs of möbius.2.db"
    shutil.copy(browsed.path, path)
    target = get(path, "/-/ttasks").headers["location"]
    answer = get(path, target)
    assert answer.status == 200
    runs = [link for link in answer.page.links if "/graph/" in link]
    assert {run.status for run in get_all(path, *runs)} == {200}


def test_pages_are_under_the_base_address_that_datasette_has(browsed: Browsed) -> None:
    answer = get(browsed.path, HOME, settings={"base_url": "/tasks/"})
    assert answer.status == 200
    assert all(link.startswith(("/tasks/", "#")) for link in answer.page.links)
