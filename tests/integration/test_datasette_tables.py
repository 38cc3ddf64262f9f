"""A ledger's tables in Datasette: described, listed, shown, asked by queries; and other databases left alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.plugins import pm

from agents import Saying, reports
from browsed import Browsed
from pages import get, get_all, serving
from ttasks import CopilotError, RetryPolicy, SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType
from ttasks.datasette_plugin import cells
from ttasks.datasette_plugin.ledgers import is_ledger
from ttasks.datasette_plugin.queries import QUERIES
from ttasks.datasette_plugin.tables import COLUMNS, LISTED, TABLES
from ttasks.events.agent_facts import AgentFact, AgentSessionOpened, ModelCalled
from ttasks.log.migrate import APPLICATION_ID


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a database that is no ledger, with names and values as a ledger has them."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE tasks (id INTEGER PRIMARY KEY, title TEXT, status TEXT, duration REAL, data TEXT)"
        )
        connection.execute("""INSERT INTO tasks VALUES (1, 'theirs', 'failed', 1.2654, '{"a":1}')""")
        connection.commit()
    return path


def _columns(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        return {name: [row[1] for row in connection.execute(f"PRAGMA table_xinfo({name})")] for name in names}


def test_every_column_of_every_table_is_described_and_no_other(browsed: Browsed) -> None:
    real = _columns(browsed.path)
    assert {name: sorted(columns) for name, columns in COLUMNS.items()} == {
        name: sorted(columns) for name, columns in real.items()
    }
    assert set(TABLES) == set(LISTED) == set(real)
    assert all(text.endswith(".") for columns in COLUMNS.values() for text in columns.values())


def test_tables_are_described_and_sorted_newest_first(browsed: Browsed) -> None:
    database, tasks, log, view = get_all(
        browsed.path, "/ledger", "/ledger/tasks", "/ledger/events.json?_shape=array", "/ledger/task_output"
    )
    assert "A ledger of ttasks" in database.text
    assert "_sqlite_migrations" not in database.text.split("hidden table")[0]
    assert TABLES["tasks"] in tasks.text
    assert COLUMNS["tasks"]["payload"] in tasks.text
    assert re.search(r"status\s*<span", tasks.text), "status is a facet"
    positions = [row["position"] for row in log.json()]
    assert positions == sorted(positions, reverse=True)
    assert COLUMNS["task_output"]["chunk"] in view.text


def test_a_configuration_goes_before_what_the_plugin_says(browsed: Browsed) -> None:
    own = {"databases": {"ledger": {"tables": {"tasks": {"description": "our words", "sort": "title"}}}}}
    tasks = get(browsed.path, "/ledger/tasks", metadata=own)
    assert "our words" in tasks.text
    assert TABLES["tasks"] not in tasks.text
    untouched = get(browsed.path, "/ledger/tasks")
    assert TABLES["tasks"] in untouched.text, "nothing of one Datasette is left in the next"


def test_values_read_as_people_say_them(browsed: Browsed) -> None:
    attempts, task, log, printed = get_all(
        browsed.path,
        "/ledger/attempts?status=failed",
        f"/ledger/tasks/{browsed.solo}",
        "/ledger/events?type=RunnerStarted",
        f"/ledger/events?stream=task-{browsed.solo}",
    )
    assert f'task <a href="/-/ttasks/ledger/task/{browsed.solo}" title="{browsed.solo}">…{browsed.solo[-8:]}</a>' in (
        printed.text
    )
    assert re.search(r'runner <span title="[0-9a-f-]{36}">…[0-9a-f]{8}</span>', log.text)
    assert '<span class="ttasks-state ttasks-failed"><svg viewBox="0 0 16 16"' in attempts.text
    assert re.search(r'<span class="ttasks-number" title="[\d.]+ s">\d+ ms</span>', attempts.text)
    assert re.search(r'<time datetime="(\S+Z)" title="\1">\d{4}-\d\d-\d\d \d\d:\d\d:\d\d</time>', attempts.text)
    assert f'<a href="/-/ttasks/ledger/task/{browsed.hostile_task}" title="{browsed.hostile_task}">&lt;script' in (
        attempts.text
    ), "a reference reads as the title of what it names, and leads to our page"
    assert f'<a href="/-/ttasks/ledger/task/{browsed.solo}">by itself</a>' in task.text
    assert re.search(r'<a href="/-/ttasks/ledger/event/(\d+)" title="\1">\1</a>', attempts.text)
    assert "<details><summary><code>{&#34;" in log.text
    assert re.search(r'<code title="[0-9a-f]{64}">[0-9a-f]{12}…</code>', log.text)


def test_no_value_becomes_markup_or_steers_anything(browsed: Browsed) -> None:
    addresses = [f"/ledger/{name}?_size=max" for name in TABLES]
    addresses += [f"/ledger/{name}" for name in QUERIES]
    addresses += [f"/ledger/tasks/{browsed.hostile_task}", "/ledger", "/"]
    for address, answer in zip(addresses, get_all(browsed.path, *addresses), strict=True):
        assert answer.status == 200, address
        cells_shown = re.sub(r"<(textarea|title)\b.*?</\1>", "", answer.text, flags=re.S)
        cells_shown = re.sub(r'href="[^"]*"', "", cells_shown)
        for hostile in ("<script>alert", "<img src=x"):
            assert hostile not in cells_shown, (address, hostile)
        # What there is to choose from, Datasette draws by itself: as text, but with whatever is in it.
        cells_shown = re.sub(r'<ul class="tight-bullets">.*?</ul>', "", cells_shown, flags=re.S)
        for hostile in ("\x1b", "\u202e"):
            assert hostile not in cells_shown, (address, hostile)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "<b>no state</b>"),
        ("duration", "<b>"),
        ("created_at", "not <b>a time</b>"),
        ("data", "{<b>not json"),
        ("env", "[" * 100_000),
        ("files", "[" * 100_000),
        ("files", '[{"path": "<b>"}]'),
        ("files", '[{"path": "<b>\x1b[2J", "kind": "<b>"}]'),
        ("decision", "<b>"),
        ("nano_aiu", "<b>"),
        ("input_tokens", "<b>"),
        ("premium_requests", "<b>"),
        ("command", '["<b>", 1]'),
        ("command", '["<b>", "&", "\x1b[2J"]'),
        ("task_id", '"><b>'),
        ("graph_id", "../../<b>"),
        ("stream", "task-<b>"),
        ("stream", "runner-<b>"),
        ("stream", "<b>-<b>"),
        ("title", "<b>" * 200),
        ("title", '\ufffd"<b>\\u0000"'),
        ("title", "\ufffd<b>"),
        ("error", "line\n<b>\x1b[31m\n" * 5000),
        ("unknown", "<b>\u202e"),
        ("task_id", {"value": '"><b>', "label": "<b>"}),
    ],
)
def test_a_value_of_any_kind_is_escaped(browsed: Browsed, column: str, value: object) -> None:
    datasette = Datasette([str(browsed.path)])
    shown = cells.cell(datasette, "ledger", {"id": '"><b>', "payload": "", column: value}, column, value)
    assert shown is None or "<b>" not in shown
    assert shown is None or ("\x1b" not in shown and "\u202e" not in shown)


@pytest.fixture
def without_the_plugin() -> Iterator[None]:
    plugin = pm.unregister(name="ttasks")
    yield
    pm.register(plugin, "ttasks")


OF_OTHERS = ["/", "/other", "/other/tasks", "/other/tasks/1", "/other/tasks.json", "/other?sql=select+*+from+tasks"]


@pytest.fixture
def alone(without_the_plugin: None, other: Path) -> list[str]:
    return [answer.text for answer in get_all(other, *OF_OTHERS)]


def test_databases_that_are_no_ledgers_are_left_as_they_are(
    alone: list[str], other: Path, request: pytest.FixtureRequest
) -> None:
    import ttasks.datasette_plugin as plugin

    pm.register(plugin, "ttasks")
    try:
        together = [answer.text for answer in get_all(other, *OF_OTHERS)]
    finally:
        pm.unregister(name="ttasks")

    def steady(text: str) -> str:
        """Leave out how long it took (also whether rows were counted in time), and the line that names templates."""
        return re.sub(r"[\d.]+ms|1 row|Many rows|<!-- Templates considered.*?-->|\"query_ms\": [\d.]+", "", text)

    for address, before, after in zip(OF_OTHERS, alone, together, strict=True):
        assert steady(after) == steady(before), address


def test_a_ledger_beside_another_database_changes_nothing_of_that(browsed: Browsed, other: Path) -> None:
    home, database, table, asked, own = get_all(
        [browsed.path, other], "/", "/other", "/other/tasks", "/other?sql=select+*+from+tasks", "/ledger"
    )
    assert home.text.count("What ran in this ledger") == 1
    for answer in (database, table, asked):
        assert "What ran" not in answer.text
        assert "cells.css" not in answer.text
        assert "ttasks-" not in answer.text
        assert "Failures since" not in answer.text
        assert 'class="card' not in answer.text
    assert '<a href="/-/ttasks/ledger">What ran in this ledger →</a>' in own.text
    assert "cells.css" in own.text


def test_menus_of_a_ledger_lead_to_its_pages_for_those_who_may_see_them(browsed: Browsed) -> None:
    database, table = get_all(browsed.path, "/ledger", "/ledger/tasks")
    for answer in (database, table):
        assert '<a href="/-/ttasks/ledger/search">Search this ledger</a>' in answer.text
    partly = {"databases": {"ledger": {"tables": {"events": {"allow": False}}}}}
    database, table = get_all(browsed.path, "/ledger", "/ledger/tasks", metadata=partly)
    for answer in (database, table):
        assert answer.status == 200
        assert "Search this ledger</a>" not in answer.text
        assert "What ran in this ledger →" not in answer.text


# --- queries ---------------------------------------------------------------------------------------------------------


def _rows(path: Path, address: str) -> list[dict[str, Any]]:
    answer = get(path, address)
    assert answer.status == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def _asked(path: Path, query: str, /, **given: str) -> list[dict[str, Any]]:
    parameters = "".join(f"&{key}={value}" for key, value in given.items())
    return _rows(path, f"/ledger/{query}.json?_shape=array{parameters}")


@pytest.mark.parametrize("name", QUERIES)
def test_each_query_answers_as_page_json_and_csv_with_and_without_parameters(browsed: Browsed, name: str) -> None:
    parameters = QUERIES[name].parameters
    empty = "&".join(f"{each}=" for each in parameters)
    nothing = "&".join(f"{each}=9999" for each in parameters)
    page, rows, csv, same, none = get_all(
        browsed.path,
        f"/ledger/{name}",
        f"/ledger/{name}.json?_shape=array",
        f"/ledger/{name}.csv",
        f"/ledger/{name}.json?_shape=array&{empty}",
        f"/ledger/{name}.json?_shape=array&{nothing}",
    )
    assert QUERIES[name].title in page.text
    for parameter in parameters:
        assert f'name="{parameter}"' in page.text
    assert rows.json() == same.json()
    assert rows.json(), "the sample ledger has something of it"
    assert csv.text.splitlines()[0].split(",") == list(rows.json()[0])
    if parameters:
        assert none.json() == []


def test_failures_are_those_since_a_time(browsed: Browsed) -> None:
    found = _asked(browsed.path, "failures_since", since="2020-01-01")
    assert {"copy", "colours", "tell somebody", "try"} <= {row["title"] for row in found}
    assert all(row["reason"] and row["finished_at"] for row in found)
    assert sum(row["title"] == "try" for row in found) == 1, "only the attempt that failed"
    ends = [row["finished_at"] for row in found]
    assert ends == sorted(ends, reverse=True)
    assert _asked(browsed.path, "failures_since", since=ends[0][:10]) == found, "a day is since its beginning"
    assert [row["finished_at"] for row in _asked(browsed.path, "failures_since", since=ends[1])] == ends[:2]


def test_the_slowest_come_first_and_can_be_named(browsed: Browsed) -> None:
    durations = [row["duration"] for row in _asked(browsed.path, "slowest_tasks")]
    assert durations == sorted(durations, reverse=True)
    assert {row["title"] for row in _asked(browsed.path, "slowest_tasks", name="build")} == {"build"}
    assert _asked(browsed.path, "slowest_tasks", name="%25") == [], "a % is only a %"


def test_flaky_are_those_that_failed_and_then_succeeded(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        for number in range(4):
            again = f"[ -e again{number} ] || {{ touch again{number}; exit {int(number == 0)}; }}"
            graph = TaskGraph(title="flaky")
            graph.add(
                Task.bash(again, title="sometimes", cwd=str(tmp_path)),
                retry_policy=RetryPolicy(max_attempts=2, backoff=0.0),
            )
            graph.add(Task.bash("exit 1", title="never"), retry_policy=RetryPolicy(max_attempts=2, backoff=0.0))
            graph.run(executor)
    (found,) = _asked(path, "flakiest_tasks")
    assert found | {"last_at": ""} == {
        "name": "sometimes",
        "tasks": 4,
        "attempts": 5,
        "failed_then_succeeded": 1,
        "percent_flaky": 25.0,
        "failed_for_good": 0,
        "last_at": "",
    }


def test_runs_are_counted_per_day_and_status(browsed: Browsed) -> None:
    found = {row["status"]: row for row in _asked(browsed.path, "runs_per_day")}
    runs = _rows(browsed.path, "/ledger/runs.json?_shape=array&_size=max")
    assert sum(row["runs"] for row in found.values()) == len(runs)
    assert found["running"]["median_seconds"] is None
    ok = found["succeeded"]
    assert ok["average_seconds"] * ok["runs"] == pytest.approx(ok["total_seconds"])
    assert 0 < ok["median_seconds"] <= ok["total_seconds"]
    (nightly,) = _asked(browsed.path, "runs_per_day", graph="NIGHTL")
    assert (nightly["status"], nightly["runs"]) == ("failed", 2)


def test_the_median_is_the_middle_or_the_mean_of_both(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "some.db")) as connection:
        connection.execute("CREATE TABLE graphs (id, title)")
        connection.execute("CREATE TABLE runs (graph_id, status, started_at, finished_at)")
        connection.execute("INSERT INTO graphs VALUES ('g', 'g')")
        for status, seconds in (("succeeded", (1, 2, 9)), ("failed", (1, 2, 4, 9)), ("running", (None,))):
            for each in seconds:
                end = f"2026-11-24T08:00:0{each}.000000Z" if each is not None else None
                row = ("g", status, "2026-11-24T08:00:00.000000Z", end)
                connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", row)
        found = connection.execute(QUERIES["runs_per_day"].sql, {"since": "2026", "graph": ""}).fetchall()
    assert [(row[1], row[2], row[5] and round(row[5], 3)) for row in found] == [
        ("failed", 4, 3.0),
        ("running", 1, None),
        ("succeeded", 3, 2.0),
    ]


def test_what_ran_on_a_commit_goes_by_its_beginning(browsed: Browsed) -> None:
    every = _asked(browsed.path, "what_ran_on_commit")
    commit = every[0]["git_commit"]
    assert _asked(browsed.path, "what_ran_on_commit", commit=commit[:8].upper()) == every
    assert _asked(browsed.path, "what_ran_on_commit", commit="%25") == []


def test_who_ran_what_counts_attempts_and_runs(browsed: Browsed) -> None:
    killed, first = _asked(browsed.path, "who_ran_what")
    assert first["runs"] >= 7
    assert first["failed_attempts"] >= 6
    assert (killed["runs"], killed["attempts"]) == (1, 2)
    assert json.loads(killed["command"])
    assert _asked(browsed.path, "who_ran_what", who=first["who"][:3]) == [killed, first]


def test_what_was_left_behind_is_told_by_rows(browsed: Browsed) -> None:
    found = _asked(browsed.path, "interrupted_and_owed")
    assert [(row["what"], row["title"], row["status"]) for row in found] == [
        ("run", "import of the night", "running"),
        ("task", "load", "running"),
    ]
    assert "cannot know" in QUERIES["interrupted_and_owed"].description


def test_a_finally_task_of_a_run_that_ended_is_owed() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for script in sorted((Path(__file__).parents[2] / "migrations").glob("*.sql")):
            connection.executescript(script.read_text("utf-8"))
        for table, columns in (("tasks", COLUMNS["tasks"]), ("graphs", COLUMNS["graphs"]), ("runs", COLUMNS["runs"])):
            values = dict.fromkeys(columns, "0") | {"id": "t", "title": "unlock", "status": "pending"}
            values |= {"graph_id": "g", "runs": "1", "run": "1", "result_duration": None, "timeout": None}
            if table != "tasks":
                values |= {"id": "g", "title": "deploy", "status": "interrupted"}
            marks = ", ".join(f":{name}" for name in columns)
            connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)
        connection.execute("INSERT INTO graph_tasks VALUES ('g', 0, 't', 1, 1, NULL)")
        found = connection.execute(QUERIES["interrupted_and_owed"].sql).fetchall()
    assert [row[:2] for row in found] == [("run", "deploy"), ("owed finally task", "unlock")]


def test_events_are_between_two_times(browsed: Browsed) -> None:
    every = _asked(browsed.path, "events_between", since="2020-01-01")
    assert "TaskOutput" not in {row["type"] for row in every}
    assert {row["type"] for row in _asked(browsed.path, "events_between", type="TaskOutput")} == {"TaskOutput"}
    last = every[0]["recorded_at"]
    assert _asked(browsed.path, "events_between", since=last)[0] == every[0]
    assert _asked(browsed.path, "events_between", since="2020-01-01", until=last[:10]) == every, "all of that day"
    assert _asked(browsed.path, "events_between", since="2020-01-01", until="2020-12-31") == []


def test_the_search_goes_by_titles_commands_and_errors(browsed: Browsed) -> None:
    def titles(q: str) -> list[str]:
        return [row["title"] for row in _asked(browsed.path, "search", q=q)]

    assert titles("NIGHTLY") == ["nightly", "nightly"]
    assert titles("kill -0") == ["load"]
    assert set(titles("no space left")) == {"copy"}
    assert titles("no_space left") == [], "a _ is only a _"


def test_what_agents_cost_is_summed_per_day_run_and_task(browsed: Browsed) -> None:
    spent = {
        "attempts": 1, "model_calls": 3, "input_tokens": 32_340, "cache_read_tokens": 27_648, "output_tokens": 418,
        "premium_requests": 1.0, "ai_credits": 0.13175,
    }  # fmt: skip
    (day,) = _asked(browsed.path, "cost_per_day", model="GPT-5")
    assert day == day | spent | {"model": "gpt-5.5", "tasks": 1}
    (run,) = _asked(browsed.path, "cost_per_run", graph="mend")
    assert run == run | spent | {"title": "mend what broke", "run": 1, "status": "succeeded"}
    task, other = _asked(browsed.path, "cost_per_task")
    assert task == task | spent | {"title": "mend", "task_id": browsed.agent, "model": "gpt-5.5"}
    assert (other["task_id"], other["input_tokens"], other["ai_credits"]) == (browsed.hostile_agent, 1, None)


def test_an_agent_that_was_cut_off_costs_what_its_calls_did(tmp_path: Path) -> None:
    def facts(say: Saying) -> Iterator[AgentFact]:
        yield say(AgentSessionOpened, "s", False)
        for _ in range(2):
            yield say(ModelCalled, "small", 100, 7, 40, nano_aiu=5e8, multiplier=1.0)

    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.register(TaskType.AGENT, reports(facts, "!it crashed"))
        with pytest.raises(CopilotError):
            executor.execute(Task.agent("go", title="crashes"))
    (found,) = _asked(path, "cost_per_task")
    assert found == found | {"model": "small", "model_calls": 2, "input_tokens": 200, "output_tokens": 14}
    assert (found["ai_credits"], found["premium_requests"]) == (1.0, None), "a multiplier is no sum"


def test_what_agents_did_goes_by_tool_and_by_what_was_touched(browsed: Browsed) -> None:
    def told(**given: str) -> list[tuple[str, str, str]]:
        rows = _asked(browsed.path, "what_agents_did", **given)
        return [(row["tool"], row["called_for"], row["status"]) for row in rows if row["task_id"] == browsed.agent]

    push = ("bash", "git commit -am 'Take the discount off once' && git push", "denied")
    edit = ("edit", "/home/kim/shop/src/price.py", "succeeded")
    assert told()[:2] == [push, edit]
    assert told(tool="bash") == [push, ("bash", "pytest -q tests/test_price.py", "failed")]
    assert told(holds="price.py") == [edit, ("bash", "pytest -q tests/test_price.py", "failed")]
    assert told(holds="price_py") == [], "a _ is only a _"


def test_what_agents_were_allowed_goes_by_decision_and_by_what_decided(browsed: Browsed) -> None:
    def told(**given: str) -> list[tuple[str, str, str]]:
        rows = _asked(browsed.path, "what_agents_were_allowed", **given)
        return [(row["kind"], row["decision"], row["decided_by"]) for row in rows if row["task_id"] == browsed.agent]

    assert told(decision="approved") == [
        ("write", "approved", "write(src/*)"),
        ("shell", "approved", "shell(pytest *)"),
    ]
    assert told(decision="Denied") == [("url", "denied", "no rule"), ("shell", "denied", "deny shell(git push*)")]
    assert told(holds="pytest") == [("shell", "approved", "shell(pytest *)")]
    open_ = _asked(browsed.path, "what_agents_were_allowed", decision="unanswered")
    assert [row["task_id"] for row in open_] == [browsed.hostile_agent]


def test_what_agents_did_reads_well_in_tables(browsed: Browsed) -> None:
    calls, requests, models = get_all(
        browsed.path,
        f"/ledger/tool_calls?task_id={browsed.agent}",
        f"/ledger/permissions?task_id={browsed.agent}",
        f"/ledger/model_calls?task_id={browsed.agent}",
    )
    assert re.search(r'<span class="ttasks-state ttasks-blocked"><svg.*?</svg> denied</span>', calls.text)
    assert re.search(r'<td class="col-end_position[^>]*>\s*<a href="/-/ttasks/ledger/event/\d+"', calls.text)
    assert '<code class="ttasks-text">/home/kim/shop/src/price.py (edit)</code>' in calls.text
    assert re.search(r'<span class="ttasks-state ttasks-succeeded"><svg.*?</svg> approved</span>', requests.text)
    assert '<span class="ttasks-number" title="9420 tokens">9,420</span>' in models.text
    assert 'title="41000000.0 billionths of an AI credit">0.041</span>' in models.text


def test_queries_are_not_for_those_who_may_not_see_what_they_read(browsed: Browsed) -> None:
    partly = {"databases": {"ledger": {"tables": {"events": {"allow": False}}}}}
    database, *found = get_all(browsed.path, "/ledger", *(f"/ledger/{name}.json" for name in QUERIES), metadata=partly)
    assert "Failures since" not in database.text
    assert {answer.status for answer in found} == {404}


def test_a_query_of_the_configuration_goes_before_one_of_ours(browsed: Browsed) -> None:
    own = {"databases": {"ledger": {"queries": {"search": {"sql": "select 42 as theirs"}}}}}
    search, failures = get_all(
        browsed.path, "/ledger/search.json?_shape=array", "/ledger/failures_since.json", metadata=own
    )
    assert search.json() == [{"theirs": 42}]
    assert failures.status == 200


# --- nothing is written ----------------------------------------------------------------------------------------------


def _traces(path: Path) -> dict[str, tuple[str, int]]:
    """Return the bytes (as a digest) and the time of change of the ledger and of its WAL."""
    found = {}
    for each in (path, path.with_name(path.name + "-wal")):
        if each.exists():
            found[each.name] = (hashlib.sha256(each.read_bytes()).hexdigest(), each.stat().st_mtime_ns)
    return found


def test_looking_at_everything_writes_nothing(browsed: Browsed) -> None:
    with SQLiteStore(browsed.path, read_only=True) as kept_open:  # a reader keeps the WAL
        before = _traces(browsed.path)
        addresses = ["/", "/ledger", "/-/ttasks/ledger", "/-/ttasks/ledger/search?q=e&output=1&since=2020-01-01"]
        addresses += [f"/ledger/{name}" for name in (*TABLES, *QUERIES)]
        addresses += [f"/ledger/tasks/{browsed.solo}", "/ledger/task_output?_facet=stream&_sort_desc=position"]
        for address, answer in zip(addresses, get_all(browsed.path, *addresses), strict=True):
            assert answer.status == 200, address
        assert _traces(browsed.path) == before
        assert kept_open.tasks.get(browsed.solo) is not None


def test_not_even_a_query_that_a_configuration_calls_one_that_writes_gets_to_write(browsed: Browsed) -> None:
    before = _traces(browsed.path)
    own = {
        "databases": {"ledger": {"queries": {"wipe": {"sql": "delete from attempts", "write": True, "allow": True}}}}
    }

    async def post() -> Any:
        async with serving(browsed.path, metadata=own) as datasette:
            return await datasette.client.post("/ledger/wipe?_json=1", data={"sure": "yes"})

    answer = asyncio.run(post()).json()
    assert not answer["ok"]
    assert "readonly" in answer["message"]
    assert _traces(browsed.path) == before

    async def execute() -> None:
        async with serving(browsed.path, metadata=own) as datasette:
            await datasette.databases["ledger"].execute_write("delete from attempts")

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        asyncio.run(execute())
    assert _traces(browsed.path) == before


def test_an_empty_file_becomes_a_ledger_while_it_is_served(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    datasette = Datasette([str(path)])
    assert not is_ledger(datasette, "ledger")
    SQLiteStore(path).close()
    assert is_ledger(datasette, "ledger")
    assert not is_ledger(datasette, "_internal")
    assert not is_ledger(datasette, "nowhere")
    assert not is_ledger(datasette, None)


def test_a_ledger_of_a_newer_ttasks_is_not_described_but_not_written_to_either(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 999")
        connection.execute("CREATE TABLE things (title TEXT)")

    async def execute() -> None:
        async with serving(path) as datasette:
            assert not is_ledger(datasette, "ledger")
            await datasette.databases["ledger"].execute_write("INSERT INTO things VALUES ('x')")

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        asyncio.run(execute())
    page = get(path, "/ledger")
    assert page.status == 200
    assert "ttasks" not in page.text
