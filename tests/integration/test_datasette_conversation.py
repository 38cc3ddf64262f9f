"""What an agent did, on the page of its task: the session, each step in the order of the log, and what it came to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from html import unescape
from pathlib import Path

import pytest

from agents import RULES, SESSION, Saying, cut_off, fixed, reports
from browsed import HOSTILE, Browsed
from pages import Answer, get, get_all
from processes import PATIENCE_S
from ttasks import CopilotError, SQLiteStore, Task, TaskContext, TaskExecutor, TaskType
from ttasks.datasette_plugin import conversation
from ttasks.events import agent_facts as a
from ttasks.events.agent_facts import AgentFact

_KILLED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from agents import Saying, cut_off
from ttasks import *
from ttasks import clock

def handler(context):
    for fact in list(cut_off(Saying(1, clock.now())))[:6]:
        context._port.report(fact, at_once=True)
    print("said", flush=True)
    sys.stdin.read()

executor = TaskExecutor(SQLiteStore(sys.argv[1]))
executor.register(TaskType.AGENT, handler)
executor.execute(Task.agent("clean up", title="killed"))
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def run(ledger: Path, *facts: Callable[[Saying], Iterable[AgentFact]], answer: str = "done") -> Task:
    """Run an agent's task that does this in one attempt after the other."""
    task = Task.agent("work", title="works")
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        for each in facts:
            executor.register(TaskType.AGENT, reports(each, answer))
            try:
                executor.execute(task)
            except CopilotError:
                assert task.is_failed
    return task


def told(answer: Answer) -> str:
    """Return what a reader sees of what the agent did, step by step and without how long it took."""
    assert answer.status == 200
    section = re.search(r'<section aria-labelledby="conversation">(.*?)</section>', answer.text, re.DOTALL)
    assert section is not None
    seen = re.sub(r'<a class="when small".*?</a>|<span class="number".*?</span>', "", section[1], flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub("<[^>]*>", " ", seen)))


def steps(answer: Answer) -> list[str]:
    """Return the steps, each without how long it took."""
    parts = re.findall(r'<li class="step.*?</li>', answer.text, re.DOTALL)
    whole = [re.sub(r'<a class="(when )?small".*?</a>|<span class="number".*?</span>', "", part) for part in parts]
    return [re.sub(r"\s+", " ", unescape(re.sub("<[^>]*>", " ", part))).strip() for part in whole]


def test_the_session_and_the_sums_are_shown_first(browsed: Browsed) -> None:
    answer = get(browsed.path, f"task/{browsed.agent}")
    text = told(answer)
    assert f"Session {SESSION} begun here" in text
    assert "gpt-5.5, reasoning effort high, through GitHub Copilot, gh-cli kim" in text
    assert f"Permissions by {' '.join(RULES)}" in text
    assert "Tools without web_fetch Folder /home/kim/shop Ran by CLI 1.0.102, SDK 1.0.27" in text
    assert "5 tool calls : 3 succeeded, 1 failed, 1 denied" in text
    assert "4 permission requests : 2 approved, 2 denied" in text
    assert "3 model calls : 32,340 tokens in (27,648 cached), 418 out" in text
    assert "1 premium request, 0.1318 AI credits +1 -1 lines" in text
    for table in ("tool_calls", "permissions", "model_calls"):
        assert f'href="/ledger/{table}?task_id={browsed.agent}&amp;attempt=1"' in answer.text


def test_each_step_is_told_in_the_order_of_the_log(browsed: Browsed) -> None:
    found = steps(get(browsed.path, f"task/{browsed.agent}"))
    assert [step.split()[0] for step in found] == [
        *("Prompt", "gpt-5.5", "Answer", "bash", "gpt-5.5", "task", "grep", "Answer", "edit"),
        *("Error", "bash", "Permission", "gpt-5.5", "Answer"),
    ]
    assert found[3].startswith(
        "bash failed exit code 1 pytest -q tests/test_price.py description Run tests"
        " Permission for shell approved by shell(pytest *) … 1 failed, 24 passed in 1.12s (26 lines, 927 characters)"
    )
    assert found[6] == (
        "grep succeeded sub-agent 7f3c2a90 part of another call discount path src src/price.py:14: return price"
        " - discount * 2"
    )
    assert "Changed: /home/kim/shop/src/price.py edit Edited." in found[8]
    assert found[9] == "Error rate_limit HTTP 429 the agent tries again Too many requests; try again in 2 s"
    assert found[10] == (
        "bash denied git commit -am 'Take the discount off once' && git push description Commit and push"
        " Permission for shell denied by deny shell(git push*)"
        " The agent was told: “This is not permitted here: the rule 'deny shell(git push*)' forbids it.”"
    )
    assert "denied by no rule : https://docs.python.org/3/library/decimal.html “Read about rounding”" in found[11]
    assert found[12] == "gpt-5.5 12,040 tokens in (10,240 cached), 96 out 0.03825 AI credits"


def test_what_the_agent_said_is_not_shown_thrice(browsed: Browsed) -> None:
    answer = get(browsed.path, f"task/{browsed.agent}")
    assert "What its handler returned" not in answer.text
    assert re.search(r"\d+ events of output, progress or what the agent did", answer.seen)


def test_hostile_texts_are_only_texts(browsed: Browsed) -> None:
    answer = get(browsed.path, f"task/{browsed.hostile_agent}")
    assert len(steps(answer)) == 7
    assert "<script>alert" not in answer.text and "<img" not in answer.text
    assert "\x1b" not in answer.text and "\u202e" not in answer.text
    assert HOSTILE[:40] in unescape(answer.text)


def test_an_attempt_that_was_cut_off_says_what_nobody_knows(ledger: Path) -> None:
    answer = get(ledger, f"task/{run(ledger, cut_off, answer='!the time was over').id}")
    text, found = told(answer), steps(answer)
    assert "2 tool calls : 1 aborted, 1 unknown 1 permission request : 1 unanswered" in text
    assert f"{SESSION} taken up again" in text
    assert "the default model, through http://127.0.0.1:8080/v1" in text
    assert "Permissions by nothing: all are denied Tools none" in text
    assert found[1].startswith("bash aborted") and found[1].endswith("sleep 9999")
    assert found[2] == (
        'ops/deploy unknown {"target": {"name": "prod", "dry": false}} Permission for mcp unanswered : ops/deploy'
    )
    assert found[3:] == [
        "Answer unfinished: the rest never came half an ans",
        "Error query ended the turn the connection was lost",
        "ended before it was done its time was over",
    ]
    assert 'id="h-error">Error <span class="tag">copilot_error</span>' in answer.text


def test_nothing_runs_any_more_where_the_runner_was_killed(ledger: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(ledger)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"said\n"
        with SQLiteStore(ledger, read_only=True) as store:
            (task_id,) = store.tasks
        running = get(ledger, f"task/{task_id}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "2 tool calls : 2 running 1 permission request : 1 pending" in told(running)
    assert "2 tool calls : 2 unknown 1 permission request : 1 unanswered" in told(get(ledger, f"task/{task_id}"))


def test_a_running_attempt_is_followed(ledger: Path) -> None:
    there, go_on = threading.Event(), threading.Event()

    def handler(context: TaskContext) -> str:
        port = context._port
        assert port is not None
        for number, fact in enumerate(fixed(Saying(1, context._task.created_at)), 1):
            port.report(fact, at_once=number == 5)
            if number == 5:
                there.set()
                assert go_on.wait(PATIENCE_S)
        return "done"

    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        executor.register(TaskType.AGENT, handler)
        task = Task.agent("work", title="works")
        thread = threading.Thread(target=executor.execute, args=[task])
        thread.start()
        try:
            assert there.wait(PATIENCE_S)
            during, live = get_all(ledger, f"task/{task.id}", f"task/{task.id}?_live=1")
        finally:
            go_on.set()
            thread.join(PATIENCE_S)
    assert live.json() == {"token": "7 running"}
    assert steps(during)[-1].startswith("bash running")
    assert "1 model call : 9,420 tokens in (8,192 cached), 118 out 0.041 AI credits" in told(during)
    assert "5 tool calls" in told(get(ledger, f"task/{task.id}"))


def test_each_attempt_has_its_own(ledger: Path) -> None:
    task = run(ledger, cut_off, fixed, answer="!no")
    first, latest = get_all(ledger, f"task/{task.id}?attempt=1", f"task/{task.id}")
    assert len(steps(first)) == 6
    assert len(steps(latest)) == 14
    assert "What the agent did in attempt 1" in told(first)


def many(say: Saying) -> Iterable[AgentFact]:
    for number in range(120):
        yield say(a.ToolCallStarted, f"c{number}", "bash", {"command": f"echo {number}"})
        yield say(a.ToolCallEnded, f"c{number}", "succeeded", 0)


def test_many_steps_are_shown_from_the_end_and_in_parts(ledger: Path) -> None:
    address = f"task/{run(ledger, many).id}"
    answer = get(ledger, address)
    seen = steps(answer)
    assert len(seen) == conversation.ENTRIES_MAX
    assert "Entries 21 to 120 of 120." in told(answer)
    earlier = get(ledger, _linked(answer, "Earlier"))
    assert "Entries 1 to 20 of 120." in told(earlier)
    whole = [f"bash succeeded exit code 0 echo {number}" for number in range(120)]
    assert steps(earlier) + seen == whole
    assert steps(get(ledger, _linked(answer, "Beginning"))) == whole[:100]
    assert steps(get(ledger, _linked(earlier, "Later"))) == whole[20:]
    events = re.search(r'<a href="(/ledger/events[^"]*)">All of it as events</a>', answer.text)
    assert events is not None
    assert "240 rows" in get(ledger, unescape(events[1])).text


def _linked(answer: Answer, name: str) -> str:
    found = re.search(rf'<a href="/-/ttasks/ledger/([^"]*)">{name}</a>', answer.text)
    assert found is not None
    return unescape(found[1]).removesuffix("#conversation")


def test_an_odd_part_shows_what_there_is(browsed: Browsed) -> None:
    far = 10**17
    asked = [f"said_before={far}", "said_before=0", f"said_after={far}", "said_after=x"]
    before, none, after, wrong = get_all(browsed.path, *(f"task/{browsed.agent}?{each}" for each in asked))
    assert len(steps(before)) == 14
    assert steps(none) == steps(after) == []
    assert "There is nothing more." in told(after)
    assert wrong.status == 404


def test_huge_texts_are_cut_and_lead_to_all_of_them(ledger: Path) -> None:
    def huge(say: Saying) -> Iterable[AgentFact]:
        yield say(a.AgentPrompted, "p" * 100_000)
        yield say(a.ToolCallStarted, "c", "create", {"path": "a", "file_text": "t" * 100_000})
        yield say(a.ToolCallEnded, "c", "succeeded", output="o" * 100_000)

    answer = get(ledger, f"task/{run(ledger, huge).id}")
    assert len(answer.text) < 80_000
    assert answer.text.count("84,000 characters left out here") == 2
    assert "92,000 characters left out here" in answer.text
    assert re.search(r"All of it is in event \d+", answer.seen)


def test_a_task_whose_agent_recorded_nothing_shows_nothing_of_it(ledger: Path) -> None:
    answer = get(ledger, f"task/{run(ledger, lambda _: []).id}")
    assert answer.status == 200
    assert "What the agent did" not in answer.text
    assert "What its handler returned done" in answer.seen


def test_every_fact_is_told_on_its_own_page_too(browsed: Browsed) -> None:
    with SQLiteStore(browsed.path, read_only=True) as store:
        events = [event for event in store.history(store.tasks[browsed.agent]) if isinstance(event.fact, AgentFact)]
    types = {type(event.fact).__name__: event.position for event in events}
    answers = get_all(browsed.path, *(f"event/{position}" for position in types.values()))
    seen = {name: answer.seen for name, answer in zip(types, answers, strict=True)}
    says = {
        "AgentSessionOpened": f"attempt 1, session {SESSION}, CLI 1.0.102, SDK 1.0.27, gpt-5.5, reasoning effort high",
        "AgentPrompted": "attempt 1: The test of the price",
        "AgentAnswered": "The discount was taken off twice.",
        "ToolCallStarted": "bash: git commit -am",
        "ToolCallEnded": "denied, The user rejected this tool call.",
        "PermissionRequested": "url: https://docs.python.org/3/library/decimal.html",
        "PermissionDecided": "denied by no rule",
        "ModelCalled": "gpt-5.5, 12,040 tokens in (10,240 cached), 96 out, after 1.90 s, 0.03825 AI credits",
        "AgentErred": "rate_limit, status 429, tries again: Too many requests",
        "AgentTurnEnded": "3 model calls, 32,340 tokens in (27,648 cached), 418 out, 1 premium request",
    }
    assert seen.keys() == says.keys()
    assert {name: text in seen[name] for name, text in says.items()} == dict.fromkeys(says, True)
