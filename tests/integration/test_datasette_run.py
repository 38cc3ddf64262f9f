"""The page of a run in Datasette."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from browsed import HOSTILE, Browsed, a_live_run
from pages import Answer, get, get_all
from processes import until
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph
from ttasks.display import printable

GRAPH = "/-/ttasks/ledger/graph"


def node_names(answer: Answer) -> list[str]:
    return [
        attributes["aria-label"] or ""
        for tag, attributes in answer.page.tags
        if tag == "a" and (attributes.get("class") or "").startswith("node")
    ]


def test_the_graph_shows_each_task_by_word_and_leads_to_it(browsed: Browsed) -> None:
    answer = get(browsed.path, f"{GRAPH}/{browsed.failed}")
    assert sorted(node_names(answer)) == [
        "check: blocked",
        "copy: failed, critical",
        "dump: succeeded, critical",
        "tell somebody: failed, finally, optional",
        "unmount: succeeded, finally",
    ]
    nodes = [attributes for tag, attributes in answer.page.tags if (attributes.get("class") or "").startswith("node")]
    assert all((attributes["href"] or "").startswith("/-/ttasks/ledger/task/") for attributes in nodes)


def test_what_went_wrong_comes_first_with_what_was_printed_and_the_command_that_carries_on(browsed: Browsed) -> None:
    seen = get(browsed.path, f"{GRAPH}/{browsed.failed}").seen
    assert f"ttasks retry {browsed.failed} --ledger" in seen
    wrong = seen[seen.index("What went wrong") : seen.index("Timeline")]
    assert "copy after 3 attempts: exited with code 28: no space left on device" in wrong
    assert "err no space left on device" in wrong


def test_the_timeline_has_attempts_and_the_waits_between_them(browsed: Browsed) -> None:
    answer = get(browsed.path, f"{GRAPH}/{browsed.failed}")
    (row,) = [
        attributes["aria-label"] or ""
        for _, attributes in answer.page.tags
        if (attributes.get("aria-label") or "").startswith("copy;")
    ]
    assert [part.split(",")[0].strip() for part in row.split(";") if "attempt" in part] == [
        "attempt 1: failed",
        "attempt 2: failed",
        "attempt 3: failed",
    ]
    assert row.count("retried after") == 2


def test_retries_are_linked_both_ways(browsed: Browsed) -> None:
    answer = get(browsed.path, f"{GRAPH}/{browsed.failed}")
    assert "Retried as nightly" in answer.seen
    (again,) = {link for link in answer.page.links if link.startswith(f"{GRAPH}/") and browsed.failed not in link}
    back = get(browsed.path, again)
    assert "Retried from nightly" in back.seen
    assert f"{GRAPH}/{browsed.failed}" in back.page.links


def test_an_older_run_is_shown_as_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    marker = tmp_path / "marker"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        graph = TaskGraph(title="twice")
        graph.add(Task.bash(f"[ -e '{marker}' ] || {{ touch '{marker}'; exit 1; }}", title="flips"))
        graph.run(executor)
        (task,) = graph
        later = Task.bash("true", title="later")
        graph.add(later)
        graph.run(executor)
    first, second = get_all(path, f"{GRAPH}/{graph.id}/run/1", f"{GRAPH}/{graph.id}")
    assert node_names(first) == ["flips: failed"]
    assert sorted(node_names(second)) == [f"flips: {task.status}", "later: succeeded"]
    assert "see the latest" in first.seen
    assert "ttasks retry" not in first.seen
    assert f"{GRAPH}/{graph.id}/run/1" in second.page.links


def test_a_dead_run_is_shown_as_interrupted_with_what_resumes_it(browsed: Browsed) -> None:
    answer = get(browsed.path, f"{GRAPH}/{browsed.interrupted}")
    assert f"ttasks resume {browsed.interrupted}" in answer.seen
    assert sorted(name.partition(", critical")[0] for name in node_names(answer)) == [
        "fetch: succeeded",
        "load: interrupted",
        "report: pending",
        "unlock: pending, finally",
    ]
    assert "is gone" in answer.seen


def test_an_interrupted_run_is_live_because_somebody_may_go_on_with_it(browsed: Browsed) -> None:
    page, live = get_all(browsed.path, *([f"{GRAPH}/{browsed.interrupted}{end}" for end in ("", "?_live=1")]))
    assert "interrupted" in live.text
    assert "data-live" in page.text


def test_titles_that_sqlite_can_not_hold_as_they_are_read_alike_on_every_page(tmp_path: Path) -> None:
    path, title = tmp_path / "ledger.db", "null\0 and half a pair \ud800"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        graph = TaskGraph(title=title)
        graph.add(Task.bash("exit 1", title="work"))
        graph.run(executor)
        again = graph.retry()
        again.run(executor)
        (event,) = store.history(again)[:1]
    home, run, search = "/-/ttasks/ledger", f"{GRAPH}/{graph.id}", "/-/ttasks/ledger/search?q=work&output=1"
    *others, of_event = get_all(path, home, run, search, f"{home}/event/{event.position}")
    for answer in others:
        assert printable(title) in answer.seen
        assert "\\u0000" not in answer.seen
    assert f"graph {printable(title)}" in of_event.seen


def test_what_was_deleted_is_shown_and_nothing_is_advised_that_would_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        graph = TaskGraph(title="gone")
        graph.add(Task.bash("exit 1", title="work"))
        graph.run(executor)
        assert "ttasks retry" in get(path, f"{GRAPH}/{graph.id}").seen
        del store.graphs[graph.id]
    answer = get(path, f"{GRAPH}/{graph.id}")
    assert "(deleted)" in answer.seen
    assert "ttasks retry" not in answer.seen


def test_a_graph_that_was_never_run_is_live_until_it_has_been(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        graph = TaskGraph(title="later")
        graph.add(Task.bash("true", title="work"))
        store.graphs.save(graph)
        page, live = get_all(path, f"{GRAPH}/{graph.id}", f"{GRAPH}/{graph.id}?_live=1")
        assert "pending" in live.text
        assert "data-live" in page.text
        graph.run(TaskExecutor(store))
    assert get(path, f"{GRAPH}/{graph.id}?_live=1").text == '{"token": null}'


def test_a_running_run_is_live_until_it_ends(browsed: Browsed, tmp_path: Path) -> None:
    path, told = tmp_path / "ledger.db", tmp_path / "told"
    shutil.copy(browsed.path, path)
    with a_live_run(path, told) as process:
        with SQLiteStore(path, read_only=True) as store:
            until(lambda: any(task.name == "wait" and task.is_running for task in store.tasks.values()))
            (graph,) = [graph for graph in store.graphs.values() if graph.title.startswith("live")]
        page, live, home = get_all(path, f"{GRAPH}/{graph.id}", f"{GRAPH}/{graph.id}?_live=1", "/-/ttasks/ledger")
        assert "wait: running" in " ".join(node_names(page))
        assert "null" not in live.text
        assert "ttasks cancel" in page.seen
        assert graph.title in home.seen[home.seen.index("Running now") : home.seen.index("Latest runs")]
        told.touch()
        assert process.wait(30) == 0
    page, live = get_all(path, f"{GRAPH}/{graph.id}", f"{GRAPH}/{graph.id}?_live=1")
    assert live.text == '{"token": null}'
    assert not [attributes for tag, attributes in page.page.tags if tag == "main" and "data-live" in attributes]


def test_three_hundred_tasks_are_icons_that_say_what_they_are(browsed: Browsed) -> None:
    answer, whole = get_all(browsed.path, f"{GRAPH}/{browsed.wide}", f"{GRAPH}/{browsed.wide}?all=1")
    names = node_names(answer)
    assert len(names) == 300
    assert "part 50: failed" in names
    assert "join: blocked" in names
    assert "show all 299" in answer.seen
    assert "show all 300" in answer.seen
    assert "show all" not in whole.seen
    assert "and 294 more" in whole.seen


def test_a_hostile_title_stays_text_in_drawings_and_tables(browsed: Browsed) -> None:
    answer = get(browsed.path, f"{GRAPH}/{browsed.hostile}")
    assert answer.seen.count(printable(HOSTILE)) >= 2
    assert [name for name in node_names(answer) if name.startswith(printable(HOSTILE))]
    assert {tag for tag, _ in answer.page.tags}.isdisjoint({"img", "iframe", "style", "script"})
    assert not [name for _, attributes in answer.page.tags for name in attributes if name[:2] == "on"]


def test_a_graph_that_was_never_run_can_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        graph = TaskGraph(title="planned")
        graph.add(Task.bash("true", title="a"))
        store.graphs.save(graph)
    answer = get(path, f"{GRAPH}/{graph.id}")
    assert node_names(answer) == ["a: pending"]
    assert "never" in answer.seen
    assert "Timeline" not in answer.seen


@pytest.mark.parametrize("address", ["nothing", "{ok}/run/9", "{ok}/run/0", "~2E~2E~2Fetc", "{solo}"])
def test_what_is_not_there_is_said_and_nothing_breaks(browsed: Browsed, address: str) -> None:
    answer = get(browsed.path, f"{GRAPH}/{address.format(ok=browsed.ok, solo=browsed.solo)}")
    assert answer.status == 404
    assert "there is no graph" in answer.seen or "has no run" in answer.seen
