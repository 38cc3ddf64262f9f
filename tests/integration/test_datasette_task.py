"""The page of a task: where it stands and why, what goes on with it, its attempts, what they printed, its history."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from datasette.app import Datasette

from browsed import HOSTILE, Browsed, a_live_run, make_browsed_ledger
from ledgers import make_ledger, tampering
from processes import until
from served import get, text_of
from ttasks import RetryPolicy, SQLiteStore, Task, TaskExecutionError, TaskExecutor, TaskGraph, TaskType, TtasksError
from ttasks.datasette_plugin import task as task_page
from ttasks.datasette_plugin.task import Section

_LEFT = """
import sys
from ttasks import *
store = SQLiteStore(sys.argv[1])
executor = TaskExecutor(store)
executor.events.subscribe(lambda event: print(event.type, flush=True))
executor.execute(Task.bash("echo half; while kill -0 $PPID; do sleep 0.02; done", title="left", on_interrupted="ask"))
"""


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> Browsed:
    return make_browsed_ledger(tmp_path_factory.mktemp("browsed") / "ledger.db", wide=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.db"
    make_ledger(path)
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def id_of(ledger: Path, title: str) -> str:
    """Return the id of the first task of this title."""
    with SQLiteStore(ledger, read_only=True) as store:
        return next(task.id for task in store.tasks.values() if task.title == title)


def run(ledger: Path, *tasks: Task) -> None:
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        for task in tasks:
            try:
                executor.execute(task)
            except TaskExecutionError:
                assert task.is_failed


def page(ledger: Path, address: str) -> str:
    (answer,) = get(ledger, address)
    assert answer.status_code == 200
    return str(answer.text)


def output_of(html: str) -> list[str]:
    """Return the lines in the box of what was printed, those that went to stderr marked as they are on the page."""
    lines = re.findall(r'<div class="line(?: err)?">(.*?)</div>', html, re.DOTALL)
    return [unescape(re.sub("<[^>]*>", "", line)) for line in lines]


def test_a_task_shows_its_state_error_output_and_attempts(browsed: Browsed) -> None:
    html = page(browsed.path, f"task/{id_of(browsed.path, 'copy')}")
    text = text_of(html)
    assert "failed" in re.findall(r'class="headline">(.*?)</p>', html, re.DOTALL)[0]
    assert "3 attempts" in text
    assert output_of(html) == ["errno space left on device"]
    assert text.count("exit code 28") == 6  # the three attempts, and their ends in the history
    assert "retried: up to 3 attempts, 0.05 s apart" in text
    assert "after dump succeeded" in text
    assert re.search("before (check blocked, unmount succeeded|unmount succeeded, check blocked)", text)


def test_each_attempt_can_be_looked_at(browsed: Browsed) -> None:
    task_id = id_of(browsed.path, "try")
    first, latest = get(browsed.path, f"task/{task_id}?attempt=1", f"task/{task_id}")
    assert (output_of(first.text), output_of(latest.text)) == (["errnot yet"], ["now it works"])
    assert "Error of attempt 1 not yet" in text_of(first.text)
    assert ">Error" not in latest.text
    assert re.search(r"retry 1 succeeded .* \S+@\S+", text_of(latest.text))


def test_a_task_leads_to_its_graph_to_what_it_repeats_and_to_what_repeats_it(browsed: Browsed) -> None:
    with SQLiteStore(browsed.path, read_only=True) as store:
        (again,) = [task for task in store.tasks.values() if task.title == "copy" and task.derived_from is not None]
        derived_from = again.derived_from
    first, second = get(browsed.path, f"task/{derived_from}", f"task/{again.id}")
    assert f'<dt>Repeated as</dt><dd><a href="/-/ttasks/ledger/task/{again.id}">copy</a>' in first.text
    assert f'<dt>Repeats</dt><dd><a href="/-/ttasks/ledger/task/{derived_from}">copy</a>' in second.text
    assert f'href="/-/ttasks/ledger/graph/{browsed.failed}/run/1"' in first.text


def test_a_blocked_task_says_by_what(browsed: Browsed) -> None:
    text = text_of(page(browsed.path, f"task/{id_of(browsed.path, 'check')}"))
    assert "Blocked by copy failed." in text
    assert "None yet." in text


def test_hostile_texts_are_only_texts(browsed: Browsed) -> None:
    html = page(browsed.path, f"task/{browsed.hostile_task}")
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "javascript:" not in re.sub(r"\s+", "", "".join(re.findall(r'href="[^"]*"', html)))
    assert not re.search(r" on\w+=|style=", re.sub(r">[^<]*<", "><", html))
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert HOSTILE[:40] in unescape(html)
    assert output_of(html) == ["<script>alert(3)</script>", "click", r"\x1b[2Jgone", "\ufffd\ufffd"]


def test_colours_are_classes_and_what_was_overwritten_can_be_unfolded(browsed: Browsed) -> None:
    html = page(browsed.path, f"task/{id_of(browsed.path, 'colours')}")
    assert '<span class="c1">colour 1</span>' in html
    assert "overwrote 2 earlier" in html
    assert '<span class="over">10%</span><span class="over">50%</span>' in html


def test_a_dead_running_task_is_interrupted_and_says_what_goes_on_with_it(browsed: Browsed) -> None:
    html = page(browsed.path, f"task/{id_of(browsed.path, 'load')}")
    text = text_of(html)
    assert re.search(r"It was running: its runner, process \d+ on \S+, is gone\.", text)
    assert f"ttasks resume {browsed.interrupted} --ledger {browsed.path}" in text
    assert 'data-token="' in html  # somebody may go on with it
    assert ">running<" not in html


def test_what_waits_for_a_person_says_how_to_decide(ledger: Path) -> None:
    _leave(ledger)
    task_id = id_of(ledger, "left")
    text = text_of(page(ledger, f"task/{task_id}"))
    assert "it waits for a person" in text
    for answer in ("succeeded", "failed", "rerun"):
        assert f"ttasks resolve {task_id} --{answer}" in text
    with SQLiteStore(ledger) as store:
        store.tasks.resolve(task_id, "failed", note="looked <i>at</i> it")
    html = page(ledger, f"task/{task_id}")
    assert "decided that it counts as failed: “looked <i>at</i> it”" in text_of(html)
    assert "<i>" not in html
    assert "data-token" not in html


def _leave(ledger: Path) -> None:
    """Kill a process while the task that it runs has printed something."""
    command = [sys.executable, "-c", _LEFT, str(ledger)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert any(line.strip() == "output" for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)


def test_secrets_are_named_and_not_shown(made: Path) -> None:
    text = text_of(page(made, f"task/{id_of(made, 'prints')}"))
    assert "GREETING=hello" in text
    assert "TOKEN (secret, not recorded)" in text
    assert "s3cret" not in text


def test_what_a_handler_returned_and_how_far_it_was_are_shown(made: Path) -> None:
    html = page(made, f"task/{id_of(made, 'answers')}")
    assert "forty-two" in text_of(html)
    assert re.search(r'<progress max="100" value="50(\.0)?"', html)
    assert "50 % thinking" in text_of(html)


def test_a_cancelled_task_says_who_asked(made: Path) -> None:
    text = text_of(page(made, f"task/{id_of(made, 'cancelled')}"))
    assert re.search(r"\S+@\S+ asked for it to be cancelled, at", text)


def test_an_imported_task_shows_what_it_printed_elsewhere(ledger: Path) -> None:
    task = Task.bash("echo out; echo err >&2; exit 3", title="came from elsewhere")
    with pytest.raises(TaskExecutionError):
        TaskExecutor().execute(task)
    with SQLiteStore(ledger) as store:
        store.tasks.save(task)
    html = page(ledger, f"task/{task.id}")
    assert sorted(output_of(html)) == ["errerr", "out"]
    assert "None in this ledger: it was imported with its result." in text_of(html)
    assert "Error err" in text_of(html)


def test_a_long_error_says_where_the_whole_is(ledger: Path) -> None:
    task = Task.bash("head -c 100000 /dev/zero | tr '\\0' e >&2; exit 1")
    run(ledger, task)
    html, whole = get(ledger, f"task/{task.id}", f"task/{task.id}/attempt/1/output.txt?stream=stderr")
    assert "The end of 100,000 characters: all of it was printed to stderr." in text_of(html.text)
    assert whole.text == "e" * 100_000


def test_what_an_attempt_ran_is_shown_where_the_task_was_revised_since(ledger: Path) -> None:
    task = Task.bash("exit 4", title="revised")
    run(ledger, task)
    with SQLiteStore(ledger) as store:
        found = store.tasks[task.id]
        found.payload = "exit 5"
        store.tasks.save(found)
    assert "Attempt 1 ran exit 4" in text_of(page(ledger, f"task/{task.id}"))


def test_how_a_task_by_itself_is_retried_is_shown(made: Path) -> None:
    assert "Retried up to 2 attempts, 0.001 s apart" in text_of(page(made, f"task/{id_of(made, 'fails')}"))


def test_an_event_whose_content_is_damaged_is_told_as_such(ledger: Path) -> None:
    task = Task.bash("echo out; exit 1", title="damaged")
    run(ledger, task)
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET data = json_set(data, '$.error', 3) WHERE type = 'TaskFailed'")
    assert "TaskFailed what it says can't be read" in text_of(page(ledger, f"task/{task.id}"))
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET data = json_set(data, '$.chunks[0][2]', 3) WHERE type = 'TaskOutput'")
    (answer,) = get(ledger, f"task/{task.id}")
    assert answer.status_code == 500
    assert re.search(r"event \d+ \(TaskOutput\) can't be read", text_of(answer.text))


def test_much_output_is_shown_from_its_end_and_in_parts(ledger: Path) -> None:
    task = Task.bash("seq 1 30000", title="much")
    run(ledger, task)
    html = page(ledger, f"task/{task.id}")
    assert len(html) < 300_000
    assert output_of(html)[0::999] == ["29001", "30000"]
    lines, address = output_of(html), _linked(html, "Earlier")
    assert address is not None
    while (address := _linked(html, "Earlier")) is not None:
        html = page(ledger, address)
        lines = output_of(html) + lines
    assert lines == [str(n) for n in range(1, 30001)]
    assert _linked(html, "Later") is not None
    assert output_of(page(ledger, f"task/{task.id}?attempt=1&after=0"))[0] == "1"


def _linked(html: str, name: str) -> str | None:
    found = re.search(rf'<a href="/-/ttasks/ledger/([^"]*)">{name}</a>', html)
    return unescape(found[1]).removesuffix("#printed") if found is not None else None


def test_a_huge_line_is_cut(ledger: Path) -> None:
    task = Task.bash("head -c 1000000 /dev/zero | tr '\\0' x; echo; printf 'a\\0b\\n'", title="one line")
    run(ledger, task)
    html, whole = get(ledger, f"task/{task.id}", f"task/{task.id}/attempt/1/output.txt")
    assert len(html.text) < 50_000
    assert "996,000 characters left out here" in html.text
    assert output_of(html.text)[-1] == r"a\x00b"
    assert whole.text == "x" * 1_000_000 + "\na\0b\n"


def test_a_long_payload_is_folded(ledger: Path) -> None:
    task = Task.bash("\n".join(f": {n}" for n in range(100)), title="long")
    run(ledger, task)
    assert '<details id="payload"><summary>: 0 (100 lines, 489 characters)</summary>' in page(ledger, f"task/{task.id}")


def test_output_comes_as_a_file_that_nothing_takes_for_a_page(browsed: Browsed) -> None:
    task_id = browsed.hostile_task
    (answer,) = get(browsed.path, f"task/{task_id}/attempt/1/output.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'attachment; filename="{task_id[-8:]}-1-output.txt"'
    assert answer.text.startswith("<script>alert(3)</script>\n\x1b]8;;")


def test_a_file_may_hold_one_stream(made: Path) -> None:
    address = f"task/{id_of(made, 'prints')}/attempt/1/output.txt"
    both, out, err, neither = get(made, address, *(f"{address}?stream={name}" for name in ("stdout", "stderr", "x")))
    assert sorted(both.text.split()) == ["err", "out"]
    assert (out.text, err.text) == ("out\n", "err\n")
    assert neither.status_code == 404
    assert "stream='x' is neither stdout nor stderr" in text_of(neither.text)


def test_what_is_not_there_is_not_found(browsed: Browsed) -> None:
    task_id = browsed.solo
    asked = {
        "task/nobody": "there is no task nobody in this ledger",
        "task/nobody/attempt/1/output.txt": "there is no task nobody in this ledger",
        f"task/{task_id}?attempt=2": f"task {task_id} has no attempt 2 in this ledger: it has 1",
        f"task/{task_id}/attempt/2/output.txt": f"task {task_id} has no attempt 2 in this ledger: it has 1",
        f"task/{task_id}?attempt=x": "attempt='x' is no number",
        f"task/{task_id}?before=-1": "before='-1' is no number",
    }
    for answer, says in zip(get(browsed.path, *asked), asked.values(), strict=True):
        assert answer.status_code == 404
        assert says in text_of(answer.text)


def test_an_odd_place_in_the_output_shows_what_there_is(browsed: Browsed) -> None:
    task_id, far = browsed.solo, 10**17
    asked = [f"before={far}", "before=0", f"after={far}", "after=0&within=3", f"after=0&within={far}", "before=&after="]
    answers = get(browsed.path, *(f"task/{task_id}?{each}" for each in asked))
    assert [output_of(each.text) for each in answers] == [
        ["by itself"], [], [], ["by itself"], ["by itself"], ["by itself"]
    ]  # fmt: skip


def test_the_history_folds_what_was_printed(made: Path) -> None:
    html = page(made, f"task/{id_of(made, 'prints')}")
    types = re.findall(r"<td>(\w+)</td><td class=\"says\">", html)
    assert types == ["TaskCreated", "TaskStarted", "ProcessSpawned", "TaskSucceeded"]
    assert re.search(r"\d+ events? of output or progress", text_of(html))


def test_a_long_history_begins_with_what_is_left_out(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_page, "EVENTS_MAX", 5)
    monkeypatch.setattr(task_page, "ATTEMPTS_MAX", 2)
    graph = TaskGraph(title="again and again")
    task = Task.bash("exit 1", title="hopeless")
    graph.add(task, retry_policy=RetryPolicy(max_attempts=4, backoff=0.001))
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        graph.run(executor)
    html = page(ledger, f"task/{task.id}")
    assert len(re.findall('class="says"', html)) == 5
    assert re.search(r"\d+ earlier events", text_of(html))
    assert "The latest of 4: all of them" in text_of(html)


def test_a_page_is_live_until_its_task_has_ended(ledger: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    with a_live_run(ledger, told) as process:
        until(lambda: ledger.exists() and _is_running(ledger, "wait"))
        task_id = id_of(ledger, "wait")
        assert until(lambda: _token_of_page_and_own(ledger, task_id)) == "3 running"
        told.touch()
        process.wait(30)
    ended, last = get(ledger, f"task/{task_id}", f"task/{task_id}?_live=1")
    assert last.json() == {"token": None}
    assert "data-token" not in ended.text
    assert output_of(ended.text) == ["told"]


def _token_of_page_and_own(ledger: Path, task_id: str) -> str | None:
    """Return the token of a page that is as it was made; None: something happened since."""
    shown, live = get(ledger, f"task/{task_id}", f"task/{task_id}?_live=1")
    token = live.json()["token"]
    return token if f'data-token="{token}"' in shown.text and token != "2 running" else None


def _is_running(ledger: Path, title: str) -> bool:
    try:
        with SQLiteStore(ledger, read_only=True) as store:
            return any(task.title == title and task.is_running for task in store.tasks.values())
    except TtasksError:  # it is being made
        return False


def test_another_kind_of_task_may_show_more(browsed: Browsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more.html").write_text("<p>More of attempt {{ section.content.attempt }}</p>")
    made = Section("more.html", {"attempt": 1})
    monkeypatch.setitem(task_page.SECTIONS, TaskType.BASH, lambda ledger, task, attempt: made)
    datasette = Datasette([str(browsed.path)], template_dir=str(tmp_path))
    (answer,) = get(browsed.path, f"task/{browsed.solo}", datasette=datasette)
    assert "<p>More of attempt 1</p>" in answer.text


def test_whoever_may_not_see_the_ledger_sees_no_task(browsed: Browsed) -> None:
    metadata = {"databases": {"ledger": {"allow": {"id": "root"}}}}
    if "config" in Datasette.__init__.__code__.co_varnames:  # where 1.0 looks for it
        datasette = Datasette([str(browsed.path)], metadata=metadata, config=metadata)
    else:
        datasette = Datasette([str(browsed.path)], metadata=metadata)
    addresses = (f"task/{browsed.solo}", f"task/{browsed.solo}/attempt/1/output.txt", "event/1")
    answers = get(browsed.path, *addresses, datasette=datasette)
    assert [answer.status_code for answer in answers] == [403, 403, 403]
