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

from browsed import HOSTILE, Browsed, a_live_run
from ledgers import make_ledger, tampering
from pages import Answer, get, get_all
from processes import until
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


def page(ledger: Path, address: str) -> Answer:
    answer = get(ledger, address)
    assert answer.status == 200
    return answer


def output_of(answer: Answer) -> list[str]:
    """Return the lines in the box of what was printed, those that went to stderr marked as they are on the page."""
    lines = re.findall(r'<div class="line(?: err)?">(.*?)</div>', answer.text, re.DOTALL)
    return [unescape(re.sub("<[^>]*>", "", line)) for line in lines]


def test_a_task_shows_its_state_error_output_and_attempts(browsed: Browsed) -> None:
    answer = page(browsed.path, f"task/{id_of(browsed.path, 'copy')}")
    text = answer.seen
    assert "failed" in re.findall(r'class="headline">(.*?)</p>', answer.text, re.DOTALL)[0]
    assert "3 attempts" in text
    assert output_of(answer) == ["errno space left on device"]
    assert text.count("exited with code 28") == 7  # the error, the three attempts, and their ends in the history
    assert "retried: up to 3 attempts, 0.05 s apart" in text
    assert "after dump succeeded" in text
    assert re.search("before (check blocked, unmount succeeded|unmount succeeded, check blocked)", text)


def test_each_attempt_can_be_looked_at(browsed: Browsed) -> None:
    task_id = id_of(browsed.path, "try")
    first, latest = get_all(browsed.path, f"task/{task_id}?attempt=1", f"task/{task_id}")
    assert (output_of(first), output_of(latest)) == (["errnot yet"], ["now it works"])
    assert "Error of attempt 1 exited with code 1. not yet" in first.seen
    assert ">Error" not in latest.text
    assert re.search(r"retry 1 succeeded .* \S+@\S+", latest.seen)


def test_a_task_leads_to_its_graph_to_what_it_repeats_and_to_what_repeats_it(browsed: Browsed) -> None:
    with SQLiteStore(browsed.path, read_only=True) as store:
        (again,) = [task for task in store.tasks.values() if task.title == "copy" and task.derived_from is not None]
        derived_from = again.derived_from
    first, second = get_all(browsed.path, f"task/{derived_from}", f"task/{again.id}")
    assert f'<dt>Repeated as</dt><dd><a href="/-/ttasks/ledger/task/{again.id}">copy</a>' in first.text
    assert f'<dt>Repeats</dt><dd><a href="/-/ttasks/ledger/task/{derived_from}">copy</a>' in second.text
    assert f'href="/-/ttasks/ledger/graph/{browsed.failed}/run/1"' in first.text


def test_a_blocked_task_says_by_what(browsed: Browsed) -> None:
    text = page(browsed.path, f"task/{id_of(browsed.path, 'check')}").seen
    assert "Blocked by copy failed." in text
    assert "None yet." in text


def test_hostile_texts_are_only_texts(browsed: Browsed) -> None:
    answer = page(browsed.path, f"task/{browsed.hostile_task}")
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert "javascript:" not in re.sub(r"\s+", "", "".join(re.findall(r'href="[^"]*"', answer.text)))
    assert not re.search(r" on\w+=|style=", re.sub(r">[^<]*<", "><", answer.text))
    assert "\x1b" not in answer.text
    assert "\u202e" not in answer.text
    assert HOSTILE[:40] in unescape(answer.text)
    assert output_of(answer) == ["<script>alert(3)</script>", "click", r"\x1b[2Jgone", "\ufffd\ufffd"]


def test_colours_are_classes_and_what_was_overwritten_can_be_unfolded(browsed: Browsed) -> None:
    answer = page(browsed.path, f"task/{id_of(browsed.path, 'colours')}")
    assert '<span class="c1">colour 1</span>' in answer.text
    assert "overwrote 2 earlier" in answer.text
    assert '<span class="over">10%</span><span class="over">50%</span>' in answer.text


def test_a_dead_running_task_is_interrupted_and_says_what_goes_on_with_it(browsed: Browsed) -> None:
    answer = page(browsed.path, f"task/{id_of(browsed.path, 'load')}")
    text = answer.seen
    assert re.search(r"It was running: its runner, process \d+ on \S+, is gone\.", text)
    assert f"ttasks resume {browsed.interrupted} --ledger {browsed.path}" in text
    assert 'data-token="' in answer.text  # somebody may go on with it
    assert ">running<" not in answer.text
    assert "after load interrupted" in page(browsed.path, f"task/{id_of(browsed.path, 'report')}").seen


def test_what_waits_for_a_person_says_how_to_decide(ledger: Path) -> None:
    _leave(ledger)
    task_id = id_of(ledger, "left")
    text = page(ledger, f"task/{task_id}").seen
    assert "it waits for a person" in text
    for answer in ("succeeded", "failed", "rerun"):
        assert f"ttasks resolve {task_id} --{answer}" in text
    with SQLiteStore(ledger) as store:
        store.tasks.resolve(task_id, "failed", note="looked <i>at</i> it")
    answer = page(ledger, f"task/{task_id}")
    assert "decided that it counts as failed: “looked <i>at</i> it”" in answer.seen
    assert "<i>" not in answer.text
    assert "data-token" not in answer.text


def _leave(ledger: Path) -> None:
    """Kill a process while the task that it runs has printed something."""
    command = [sys.executable, "-c", _LEFT, str(ledger)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert any(line.strip() == "output" for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)


def test_secrets_are_named_and_not_shown(made: Path) -> None:
    text = page(made, f"task/{id_of(made, 'prints')}").seen
    assert "GREETING=hello" in text
    assert "TOKEN (secret, not recorded)" in text
    assert "s3cret" not in text


def test_what_a_handler_returned_and_how_far_it_was_are_shown(made: Path) -> None:
    answer = page(made, f"task/{id_of(made, 'answers')}")
    assert "forty-two" in answer.seen
    assert re.search(r'<progress max="100" value="50(\.0)?"', answer.text)
    assert "50 % thinking" in answer.seen


def test_a_cancelled_task_says_who_asked(made: Path) -> None:
    text = page(made, f"task/{id_of(made, 'cancelled')}").seen
    assert re.search(r"\S+@\S+ asked for it to be cancelled, at", text)


def test_an_imported_task_shows_what_it_printed_elsewhere(ledger: Path) -> None:
    task = Task.bash("echo out; echo err >&2; exit 3", title="came from elsewhere")
    with pytest.raises(TaskExecutionError):
        TaskExecutor().execute(task)
    with SQLiteStore(ledger) as store:
        store.tasks.save(task)
    answer = page(ledger, f"task/{task.id}")
    assert sorted(output_of(answer)) == ["errerr", "out"]
    assert "None in this ledger: it was imported with its result." in answer.seen
    assert "Error err" in answer.seen


def test_a_long_error_says_where_the_whole_is(ledger: Path) -> None:
    task = Task.bash("head -c 100000 /dev/zero | tr '\\0' e >&2; exit 1")
    run(ledger, task)
    answer, whole = get_all(ledger, f"task/{task.id}", f"task/{task.id}/attempt/1/output.txt?stream=stderr")
    assert "The end of 100,000 characters: all of it was printed to stderr." in answer.seen
    assert whole.text == "e" * 100_000


def test_what_an_attempt_ran_is_shown_where_the_task_was_revised_since(ledger: Path) -> None:
    task = Task.bash("exit 4", title="revised")
    run(ledger, task)
    with SQLiteStore(ledger) as store:
        found = store.tasks[task.id]
        found.payload = "exit 5"
        store.tasks.save(found)
    assert "Attempt 1 ran exit 4" in page(ledger, f"task/{task.id}").seen


def test_how_a_task_by_itself_is_retried_is_shown(made: Path) -> None:
    assert "Retried up to 2 attempts, 0.001 s apart" in page(made, f"task/{id_of(made, 'fails')}").seen


def test_an_event_whose_content_is_damaged_is_told_as_such(ledger: Path) -> None:
    task = Task.bash("echo out; exit 1", title="damaged")
    run(ledger, task)
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET data = json_set(data, '$.error', 3) WHERE type = 'TaskFailed'")
    assert "TaskFailed what it says can't be read" in page(ledger, f"task/{task.id}").seen
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET data = json_set(data, '$.chunks[0][2]', 3) WHERE type = 'TaskOutput'")
    answer = get(ledger, f"task/{task.id}")
    assert answer.status == 500
    assert re.search(r"event \d+ \(TaskOutput\) can't be read", answer.seen)


def test_much_output_is_shown_from_its_end_and_in_parts(ledger: Path) -> None:
    task = Task.bash("seq -f %040g 4500", title="much")  # more than one event holds
    run(ledger, task)
    answer = page(ledger, f"task/{task.id}")
    assert len(answer.text) < 300_000
    assert output_of(answer)[0::999] == [f"{n:040}" for n in (3501, 4500)]
    lines, address = output_of(answer), _linked(answer, "Earlier")
    assert address is not None
    while (address := _linked(answer, "Earlier")) is not None:
        answer = page(ledger, address)
        lines = output_of(answer) + lines
    assert lines == [f"{n:040}" for n in range(1, 4501)]
    assert _linked(answer, "Later") is not None
    assert output_of(page(ledger, f"task/{task.id}?attempt=1&after=0"))[0] == f"{1:040}"


def _linked(answer: Answer, name: str) -> str | None:
    found = re.search(rf'<a href="/-/ttasks/ledger/([^"]*)">{name}</a>', answer.text)
    return unescape(found[1]).removesuffix("#printed") if found is not None else None


def test_a_huge_line_is_cut(ledger: Path) -> None:
    task = Task.bash("head -c 1000000 /dev/zero | tr '\\0' x; echo; printf 'a\\0b\\n'", title="one line")
    run(ledger, task)
    answer, whole = get_all(ledger, f"task/{task.id}", f"task/{task.id}/attempt/1/output.txt")
    assert len(answer.text) < 50_000
    assert "996,000 characters left out here" in answer.text
    assert output_of(answer)[-1] == r"a\x00b"
    assert whole.text == "x" * 1_000_000 + "\na\0b\n"


def test_a_long_payload_is_folded(ledger: Path) -> None:
    task = Task.bash("\n".join(f": {n}" for n in range(100)), title="long")
    run(ledger, task)
    assert (
        '<details id="payload"><summary>: 0 (100 lines, 489 characters)</summary>'
        in page(ledger, f"task/{task.id}").text
    )


def test_output_comes_as_a_file_that_nothing_takes_for_a_page(browsed: Browsed) -> None:
    task_id = browsed.hostile_task
    answer = get(browsed.path, f"task/{task_id}/attempt/1/output.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'attachment; filename="{task_id[-8:]}-1-output.txt"'
    assert answer.text.startswith("<script>alert(3)</script>\n\x1b]8;;")


def test_a_file_may_hold_one_stream(made: Path) -> None:
    address = f"task/{id_of(made, 'prints')}/attempt/1/output.txt"
    both, out, err, neither = get_all(
        made, address, *(f"{address}?stream={name}" for name in ("stdout", "stderr", "x"))
    )
    assert sorted(both.text.split()) == ["err", "out"]
    assert (out.text, err.text) == ("out\n", "err\n")
    assert neither.status == 404
    assert "stream='x' is neither stdout nor stderr" in neither.seen


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
    for answer, says in zip(get_all(browsed.path, *asked), asked.values(), strict=True):
        assert answer.status == 404
        assert says in answer.seen


def test_an_odd_place_in_the_output_shows_what_there_is(browsed: Browsed) -> None:
    task_id, far = browsed.solo, 10**17
    asked = [f"before={far}", "before=0", f"after={far}", "after=0&within=3", f"after=0&within={far}", "before=&after="]
    answers = get_all(browsed.path, *(f"task/{task_id}?{each}" for each in asked))
    assert [output_of(each) for each in answers] == [
        ["by itself"], [], [], ["by itself"], ["by itself"], ["by itself"]
    ]  # fmt: skip


def test_the_history_folds_what_was_printed(made: Path) -> None:
    answer = page(made, f"task/{id_of(made, 'prints')}")
    types = re.findall(r"<td>(\w+)</td><td class=\"says\">", answer.text)
    assert types == ["TaskCreated", "TaskStarted", "ProcessSpawned", "TaskSucceeded"]
    assert re.search(r"\d+ events? of output or progress", answer.seen)


def test_a_long_history_begins_with_what_is_left_out(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_page, "EVENTS_MAX", 5)
    monkeypatch.setattr(task_page, "ATTEMPTS_MAX", 2)
    graph = TaskGraph(title="again and again")
    task = Task.bash("exit 1", title="hopeless")
    graph.add(task, retry_policy=RetryPolicy(max_attempts=4, backoff=0.001))
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        graph.run(executor)
    answer = page(ledger, f"task/{task.id}")
    assert len(re.findall('class="says"', answer.text)) == 5
    assert re.search(r"\d+ earlier events", answer.seen)
    assert "The latest of 4: all of them" in answer.seen


def test_a_page_is_live_until_its_task_has_ended(ledger: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    with a_live_run(ledger, told) as process:
        until(lambda: ledger.exists() and _is_running(ledger, "wait"))
        task_id = id_of(ledger, "wait")
        assert until(lambda: _token_of_page_and_own(ledger, task_id)) == "3 running"
        told.touch()
        process.wait(30)
    ended, last = get_all(ledger, f"task/{task_id}", f"task/{task_id}?_live=1")
    assert last.json() == {"token": None}
    assert "data-token" not in ended.text
    assert output_of(ended) == ["told"]


def _token_of_page_and_own(ledger: Path, task_id: str) -> str | None:
    """Return the token of a page that is as it was made; None: something happened since."""
    shown, live = get_all(ledger, f"task/{task_id}", f"task/{task_id}?_live=1")
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
    monkeypatch.setitem(task_page.SECTIONS, TaskType.BASH, lambda ledger, task, attempt, asked: made)
    answer = get(browsed.path, f"task/{browsed.solo}", template_dir=str(tmp_path))
    assert "<p>More of attempt 1</p>" in answer.text


def test_whoever_may_not_see_the_ledger_sees_no_task(browsed: Browsed) -> None:
    metadata = {"databases": {"ledger": {"allow": {"id": "root"}}}}
    addresses = (f"task/{browsed.solo}", f"task/{browsed.solo}/attempt/1/output.txt", "event/1")
    answers = get_all(browsed.path, *addresses, metadata=metadata)
    assert [answer.status for answer in answers] == [403, 403, 403]
