"""The search page: titles, commands, errors, what was printed, and ids that lead right to what bears them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from freezegun import freeze_time

from browsed import HOSTILE, Browsed
from pages import Answer, get, get_all
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph
from ttasks.datasette_plugin import search

AT = "/-/ttasks/ledger/search"


def _page(path: Path, asked: str = "") -> str:
    answer = get(path, AT + asked)
    assert answer.status == 200, answer.text
    return answer.text


def _section(text: str, name: str) -> str:
    found = re.search(rf'<section aria-labelledby="{name}">(.*?)</section>', text, re.S)
    return found[1] if found else ""


def _text(markup: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", markup)))


def test_an_empty_search_is_an_explained_form(browsed: Browsed) -> None:
    for asked in ("", "?q=", "?q=++&in=&graph=&run=&since=&until=", "?in=nonsense"):
        text = _page(browsed.path, asked)
        assert "whatever its case, newest first" in text
        assert "Nothing was found" not in text


class _Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fields: list[str | None] = []
        self.labels: set[str | None] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in {"input", "select"}:
            self.fields.append(given.get("id"))
        if tag == "label":
            self.labels.add(given.get("for"))


def test_every_field_has_a_label(browsed: Browsed) -> None:
    form = _Form()
    form.feed(_page(browsed.path, "?q=x"))
    assert {"find", "in", "graph", "run", "since", "until", "output"} <= set(form.fields)
    assert set(form.fields) == form.labels
    assert len(form.fields) == len(set(form.fields))


def test_titles_commands_and_errors_are_found_and_highlighted(browsed: Browsed) -> None:
    text = _page(browsed.path, "?q=NO+SPACE")
    tasks = _section(text, "tasks")
    assert "<mark>no space</mark> left on device" in tasks
    assert f"/-/ttasks/ledger/run/{browsed.failed}" not in tasks
    assert tasks.count("<tr>") == 1 + 2, "the copy of each run of the graph"
    assert _section(_page(browsed.path, "?q=NO+SPACE&in=titles"), "tasks") == ""
    assert "<mark>kill -0</mark>" in _section(_page(browsed.path, "?q=kill+-0&in=commands"), "tasks")
    assert "<mark>nightly</mark>" in _section(_page(browsed.path, "?q=nightly"), "graphs")


def test_what_agents_called_tools_with_is_found(browsed: Browsed) -> None:
    text = _page(browsed.path, "?q=GIT+PUSH")
    (row,) = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", _section(text, "calls"), re.S)
    assert "<mark>git push</mark>" in row
    assert f'href="/-/ttasks/ledger/task/{browsed.agent}?attempt=1">mend</a>' in row
    assert "s-blocked" in row and "</svg> denied</span>" in row
    other = _section(_page(browsed.path, "?q=discount+*+2"), "calls")
    assert '<span class="small">old_str</span> <span class="error"><mark>discount * 2</mark></span>' in other
    assert _section(_page(browsed.path, "?q=git+push&in=errors"), "calls") == ""
    assert "rejected this" in _text(_section(_page(browsed.path, "?q=rejected+this&in=errors"), "calls"))
    assert _section(_page(browsed.path, "?q=git+push&until=2020-01-01"), "calls") == ""
    assert _section(_page(browsed.path, f"?q=git+push&graph={browsed.failed}"), "calls") == ""
    quoted = _text(_section(_page(browsed.path, "?q=" + quote("-am 'Take")), "calls"))
    assert "-am 'Take" in quoted


def test_what_agents_were_told_is_found_where_output_is_searched(browsed: Browsed) -> None:
    def printed(q: str) -> list[str]:
        section = _section(_page(browsed.path, f"?output=1&since=2020-01-01&q={q}"), "printed")
        return [_text(row) for row in re.findall(r"<tr>\s+<th.*?</tr>", section, re.S)]

    (answer,) = [row for row in printed("taken+off+twice") if "mend" in row]
    assert "stdout" in answer, "what an agent answers is printed, and found once"
    assert any("1 tool E assert Decimal" in row for row in printed("assert+decimal"))
    assert any("1 sub-agent In src/price.py" in row for row in printed("in+src/price"))


def test_what_was_left_running_is_called_interrupted(browsed: Browsed) -> None:
    text = _page(browsed.path, "?q=import+of+the+night")
    assert "s-interrupted" in _section(text, "graphs")
    assert "s-interrupted" in _section(_page(browsed.path, "?q=echo+half"), "tasks")


@pytest.mark.parametrize("pattern", ["%", "_", "\\", "e%o", "f_tch"])
def test_signs_of_patterns_are_only_signs(browsed: Browsed, pattern: str) -> None:
    tasks = _section(_page(browsed.path, f"?q={quote(pattern)}&in=titles"), "tasks")
    assert (pattern in _text(tasks)) == bool(tasks)


def test_the_latest_come_first_and_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "HITS_MAX", 10)
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        graph = TaskGraph(title="many")
        for number in range(search.HITS_MAX + 5):
            graph.add(Task.bash("true", title=f"one {number:03}"))
        graph.run(executor, max_workers=1)
    text = _page(path, "?q=one")
    found = re.findall(r"<mark>one</mark> (\d+)", _section(text, "tasks"))
    assert len(found) == search.HITS_MAX
    assert found == sorted(found, reverse=True)
    assert f"There are more tasks: these are the latest {search.HITS_MAX}." in text
    assert "more tasks" not in _page(path, "?q=one+000")


def test_a_search_can_be_of_a_graph_a_run_and_times(browsed: Browsed) -> None:
    assert "fetch" in _section(_page(browsed.path, f"?q=fetch&graph={browsed.ok}"), "tasks")
    assert _section(_page(browsed.path, f"?q=fetch&graph={browsed.failed}"), "tasks") == ""
    assert _section(_page(browsed.path, f"?q=fetch&graph={browsed.ok}&run=2"), "tasks") == "", "it succeeded in run 1"
    assert _section(_page(browsed.path, "?q=fetch&since=2020-01-01"), "tasks")
    assert _section(_page(browsed.path, "?q=fetch&until=2020-01-01"), "tasks") == ""
    assert "since is no time" in _page(browsed.path, "?q=fetch&since=soon")
    missing = get(browsed.path, f"{AT}?q=x&run=first")
    assert missing.status == 404


def test_an_id_or_its_beginning_or_end_leads_right_there(browsed: Browsed) -> None:
    asked = [browsed.ok, browsed.ok[-12:], f"  {browsed.solo[-8:].upper()} ", browsed.solo]
    found = get_all(browsed.path, *(f"{AT}?q={quote(each)}" for each in asked))
    assert [answer.status for answer in found] == [302] * 4
    graph, task = f"/-/ttasks/ledger/graph/{browsed.ok}", f"/-/ttasks/ledger/task/{browsed.solo}"
    assert [answer.headers["location"] for answer in found] == [graph, graph, task, task]
    assert "Nothing was found" in _page(browsed.path, "?q=00000000")


def test_what_shares_the_beginning_of_its_id_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with freeze_time("2026-01-01 12:00:00"):  # ids begin with the time
        graph, task = TaskGraph(title="made at once"), Task.bash("true")
    graph.add(task)
    with SQLiteStore(path) as store:
        store.graphs.save(graph)
    several = _section(_page(path, f"?q={graph.id[:8]}"), "ids")
    assert graph.id in several
    assert task.id in several


# --- what was printed ------------------------------------------------------------------------------------------------


def test_printed_lines_are_found_in_a_run_or_between_times(browsed: Browsed) -> None:
    of_run = _section(_page(browsed.path, f"?q=12+PASSED&output=1&graph={browsed.ok}&run=1"), "printed")
    assert "<mark>12 passed</mark>" in of_run
    assert re.search(r'href="/-/ttasks/ledger/task/[0-9a-f-]+\?attempt=1">test</a>', of_run)
    assert re.search(r'href="/-/ttasks/ledger/event/\d+"', of_run)
    assert "<mark>a warning</mark>" in _page(browsed.path, f"?q=a+warning&output=1&graph={browsed.ok}&run=1")
    assert _section(_page(browsed.path, f"?q=12+passed&output=1&graph={browsed.failed}"), "printed") == ""
    assert "<mark>12 passed</mark>" in _page(browsed.path, "?q=12+passed&output=1&since=2020-01-01")
    assert _section(_page(browsed.path, "?q=12+passed&output=1&until=2020-01-01"), "printed") == ""
    assert _section(_page(browsed.path, "?q=12+passed&output=1&since=2999-01-01"), "printed") == ""


def test_output_is_searched_only_where_that_is_asked(browsed: Browsed) -> None:
    assert _section(_page(browsed.path, f"?q=12+passed&graph={browsed.ok}&run=1"), "printed") == ""
    text = _page(browsed.path, "?q=12+passed&output=1")
    assert "choose a graph, or times" in text
    assert _section(text, "printed") == ""


def test_without_a_run_the_latest_of_the_graph_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        graph = TaskGraph(title="again")
        graph.add(Task.bash(f"[ -e {tmp_path}/x ] && echo second || {{ touch {tmp_path}/x; echo first; exit 1; }}"))
        graph.run(executor)
        graph.run(executor)
    latest, first = (_page(path, f"?q={q}&output=1&graph={graph.id}") for q in ("second", "first"))
    assert "<mark>second</mark>" in _section(latest, "printed")
    assert _section(first, "printed") == ""
    assert "<mark>first</mark>" in _section(_page(path, f"?q=first&output=1&graph={graph.id}&run=1"), "printed")


def test_a_line_is_found_however_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(
            Task.bash(f"printf 'nee'; sleep 0.3; printf 'dle and {'x' * 300}\\n%s' 'the end'", title="slow")
        )
        executor.execute(Task.bash("head -c 200000 /dev/zero | tr '\\0' y; printf needle", title="long"))
    printed = _section(_page(path, "?q=needle&output=1&since=2020-01-01"), "printed")
    assert printed.count("<mark>needle</mark>") == 2
    assert f"<mark>needle</mark> and {'x' * (search.AROUND - 5)}…" in printed, "only what is around a hit is shown"
    assert "<mark>the end</mark>" in _page(path, "?q=the+end&output=1&since=2020-01-01"), "a last line without its end"


def test_a_search_that_takes_too_long_says_so_and_shows_what_it_found(
    browsed: Browsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SECONDS_MAX", -1.0)
    text = _page(browsed.path, "?q=fetched&output=1&since=2020-01-01")
    assert "could not all be searched" in text
    assert "<mark>fetched</mark>" in _section(text, "printed"), "what the first event held"


def test_rows_that_take_too_long_say_so(browsed: Browsed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SECONDS_MAX", -1.0)
    monkeypatch.setattr("ttasks.datasette_plugin.ledgers.STEPS_BETWEEN_LOOKS", 1)
    assert "Titles, commands and errors could not be searched" in _page(browsed.path, "?q=fetched")


# --- hostile texts ---------------------------------------------------------------------------------------------------


def test_a_line_without_end_is_searched_in_pieces_and_each_hit_found_once(
    browsed: Browsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for longest in range(1, 9):
        monkeypatch.setattr(search, "LINE_MAX", longest)
        printed = _section(_page(browsed.path, "?q=itself&output=1&since=2020-01-01"), "printed")
        assert printed.count("<mark>itself</mark>") == 1, longest


@pytest.fixture(scope="module")
def hostile_answers(browsed: Browsed) -> Iterator[list[Answer]]:
    asked = [quote(HOSTILE), "%3Cscript%3E", "alert", "%1b", "%00", "%ff", "x" * 5000, "%F0%9F%92%A9", "%EF%BF%BD"]
    yield get_all(browsed.path, *(f"{AT}?q={each}&output=1&since=2020-01-01&graph=%3Cb%3E" for each in asked),
                  *(f"{AT}?q={each}&output=1&since=2020-01-01" for each in asked))  # fmt: skip


def test_hostile_texts_are_only_shown(hostile_answers: list[Answer]) -> None:
    for answer in hostile_answers:
        assert answer.status == 200
        for hostile in ("<script>alert", "<img src=x", "\x1b", "\u202e", "<b>"):
            assert hostile not in re.sub(r'(value|content)="[^"]*"', "", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "Only the first 500 characters" in hostile_answers[6].text
