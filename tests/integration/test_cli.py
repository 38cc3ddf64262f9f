"""The command, as a person uses it: real processes, real files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import Saying, cut_off, reports
from browsed import Browsed
from pages import get_all
from ttasks import CopilotError, SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType, __version__
from ttasks.events.agent_facts import AgentFact, ToolCallStarted

TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]


class Shell:
    """Runs ``ttasks`` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / ".ttasks" / "ledger.db"

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name != "TTASKS_LEDGER"}
        return subprocess.run(
            [*TTASKS, *arguments],
            cwd=self.folder,
            env={**clean, "TZ": "UTC", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        return path

    def sql(self, query: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.ledger)) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def ttasks(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


GOOD = """
title: good
tasks:
  hello: {bash: "echo hello; echo warning >&2"}
  world: {bash: "echo world", after: [hello]}
"""

BAD = """
title: bad
tasks:
  ok: {bash: "echo fine"}
  broken: {bash: "echo before; echo no such thing >&2; exit 3", after: [ok], retries: {max_attempts: 2}}
  late: {bash: echo late, after: [broken]}
  clean: {bash: echo clean, after: [late], finally: true}
"""


def test_a_run_that_is_ok_exits_with_0_and_prints_each_event(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    done = ttasks("run", "good.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line[9:] for line in done.stdout.splitlines()]
    assert [line.split(" after ")[0] for line in lines[1:7]] == [
        "hello started",
        "hello | hello",
        "hello | warning",
        "hello succeeded",
        "world started",
        "world | world",
    ]
    assert "OK: 2 succeeded" in done.stdout


def test_a_run_that_is_not_ok_exits_with_1_and_ends_with_the_failed_tasks_last_output(ttasks: Shell) -> None:
    ttasks.write("bad.yaml", BAD)
    done = ttasks("run", "bad.yaml")
    assert done.returncode == 1
    summary = done.stdout.split("\n\n")[-1]
    assert "broken: failed: exited with code 3: no such thing\n  | before\n  | no such thing\n" in summary
    assert "late: blocked by broken" in summary
    assert "NOT OK: 2 succeeded, 1 failed, 1 blocked" in summary


def test_every_start_output_and_end_is_there_in_plain_sql(ttasks: Shell) -> None:
    ttasks.write("bad.yaml", BAD)
    ttasks("run", "bad.yaml")
    starts = "SELECT name, attempt FROM attempts JOIN tasks ON tasks.id = task_id ORDER BY position"
    assert ttasks.sql(starts) == [("ok", 1), ("broken", 1), ("broken", 2), ("clean", 1)]
    output = (
        "SELECT tasks.name, stream, text FROM task_output JOIN tasks ON tasks.id = task_id"
        " WHERE attempt = 2 OR name = 'ok' ORDER BY position, chunk"
    )
    assert ttasks.sql(output) == [
        ("ok", "stdout", "fine\n"),
        ("broken", "stdout", "before\n"),
        ("broken", "stderr", "no such thing\n"),
    ]
    ends = (
        "SELECT name, attempts.status, returncode, reason FROM attempts JOIN tasks ON tasks.id = task_id"
        " ORDER BY position"
    )
    assert ttasks.sql(ends) == [
        ("ok", "succeeded", 0, None),
        ("broken", "failed", 3, "exit_code"),
        ("broken", "failed", 3, "exit_code"),
        ("clean", "succeeded", 0, None),
    ]


def test_a_bad_file_exits_with_2_and_leaves_no_trace(ttasks: Shell) -> None:
    ttasks.write("wrong.yaml", "tasks:\n  a: {bsh: echo}\n")
    done = ttasks("run", "wrong.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "wrong.yaml:2: task 'a':" in done.stderr and "'bash'" in done.stderr
    assert not ttasks.ledger.exists()


def test_a_missing_file_is_named(ttasks: Shell) -> None:
    done = ttasks("run", "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml: the workflow file can't be read: No such file or directory" in done.stderr


@pytest.mark.parametrize("command", ["ls", "show", "events", "verify", "rebuild"])
def test_looking_without_a_ledger_says_so_and_makes_none(ttasks: Shell, command: str) -> None:
    done = ttasks(command)
    assert done.returncode == 2
    assert "there is no ledger at .ttasks/ledger.db" in done.stderr
    assert not ttasks.ledger.exists()


@pytest.mark.parametrize("command", ["ls", "show", "events", "verify", "rebuild"])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(ttasks: Shell, command: str) -> None:
    other = ttasks.write("notes.txt", "not a database " * 100)
    done = ttasks(command, "--ledger", "notes.txt")
    assert done.returncode == 2
    assert "is not a ledger" in done.stderr
    assert other.read_text() == "not a database " * 100
    assert sorted(path.name for path in ttasks.folder.iterdir()) == ["notes.txt"]


def test_the_ledger_is_the_option_else_the_variable_else_the_default(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml", "--ledger", "one/a.db", TTASKS_LEDGER="two/b.db")
    ttasks("run", "good.yaml", TTASKS_LEDGER="two/b.db")
    ttasks("run", "good.yaml")
    assert all((ttasks.folder / path).exists() for path in ("one/a.db", "two/b.db", ".ttasks/ledger.db"))


def test_ls_lists_graphs_newest_first_and_tasks_on_request(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks.write("bad.yaml", BAD)
    ttasks("run", "good.yaml")
    ttasks("run", "bad.yaml")
    rows = [line.split() for line in ttasks("ls").stdout.splitlines()[1:]]
    assert [row[1:3] for row in rows] == [["bad", "failed"], ["good", "succeeded"]]
    tasks = ttasks("ls", "--tasks").stdout.splitlines()[1:]
    assert sorted(line.split()[1] for line in tasks) == ["broken", "clean", "hello", "late", "ok", "world"]


def test_python_m_ttasks_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ttasks", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout


def test_show_tells_a_graph_and_a_task_by_part_of_its_id(ttasks: Shell) -> None:
    ttasks.write("bad.yaml", BAD)
    ttasks("run", "bad.yaml")
    ((task_id,),) = ttasks.sql("SELECT id FROM tasks WHERE name = 'broken'")
    graph = ttasks("show").stdout
    assert "status    failed" in graph and "blocked by broken" in graph and "finally" in graph
    shown = ttasks("show", str(task_id)[-8:]).stdout
    assert "attempt 2 failed" in shown and "exited with code 3" in shown and "| no such thing" in shown
    assert ttasks("show", str(task_id), "--output").stdout == "before\nno such thing\n"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no such thing >&2; exit 7", "exited with code 7: no such thing"),
        (
            "echo cache is cold >&2; kill -KILL $$",
            "killed by SIGKILL (probably out of memory, or kill -9): cache is cold",
        ),
        (
            "bash -c 'kill -SEGV $$' 2>/dev/null; code=$?; echo bye >&2; exit $code",
            "exited with code 139 (a command was killed by SIGSEGV, a crash: invalid memory access): bye",
        ),
        ("exit 127", "exited with code 127 (a command was not found)"),
    ],
)
def test_the_code_of_a_failed_script_is_shown_beside_its_stderr_everywhere(
    ttasks: Shell, script: str, why: str
) -> None:
    ttasks.write("w.yaml", json.dumps({"tasks": {"broken": {"bash": script}}}))
    ran = ttasks("run", "w.yaml").stdout
    assert [line.partition(": ")[2] for line in ran.splitlines() if "broken failed after" in line] == [why]
    assert f"broken: failed: {why}" in ran
    assert f"broken: failed: {why}" in ttasks("retry").stdout
    assert why in ttasks("show").stdout
    assert why in ttasks("ls", "--tasks").stdout
    ((task_id, graph_id),) = ttasks.sql("SELECT task_id, graph_id FROM graph_tasks LIMIT 1")
    code, _, said = why.rpartition(": ") if ": " in why and not why.endswith(")") else (why, "", "")
    shown = ttasks("show", str(task_id)).stdout
    assert f", {code}, " in shown and said in shown
    home, run, task = get_all(ttasks.ledger, "/-/ttasks/ledger", f"graph/{graph_id}", f"task/{task_id}")
    assert why in home.seen
    assert run.seen.count(why) == 2, "what went wrong, and the table of tasks"
    assert why in task.seen
    assert f"Error {code}." in task.seen


def test_show_tells_what_an_agent_did(ttasks: Shell, browsed: Browsed) -> None:
    shown = ttasks("show", browsed.agent, "--ledger", str(browsed.path)).stdout
    after = shown[shown.index("session ") :].splitlines()
    assert after == [
        "session   0d5b8a52-6a0e-4c8f-9a6e-2f6f6a1f4c11, gpt-5.5, reasoning effort high, through GitHub Copilot,"
        " gh-cli kim, CLI 1.0.102, SDK 1.0.27",
        "decides   read, write(src/*), shell(git *), shell(pytest *), deny shell(git push*)",
        "tools     without web_fetch",
        "> The test of the price with a discount fails. Find out why, fix it, and commit.",
        "I'll run the tests first to see what fails.",
        "tool bash: pytest -q tests/test_price.py -> failed (exit 1), 1.37 s",
        '  permission shell "pytest -q tests/test_price.py" approved by shell(pytest *)',
        "tool task: Where are discounts computed? -> succeeded, 1.25 s",
        "tool sub-agent 7f3c2a90: grep: discount -> succeeded, 50 ms",
        "sub-agent 7f3c2a90: In src/price.py, line 14.",
        "tool edit: /home/kim/shop/src/price.py -> succeeded, 90 ms",
        "  changed /home/kim/shop/src/price.py (edit)",
        '  permission write "/home/kim/shop/src/price.py" approved by write(src/*)',
        "error rate_limit (429): Too many requests; try again in 2 s; it tries again",
        "tool bash: git commit -am 'Take the discount off once' && git push -> denied, 50 ms",
        "  permission shell \"git commit -am 'Take the discount off once' && git push\" denied by deny shell(git"
        " push*): This is not permitted here: the rule 'deny shell(git push*)' forbids it.",
        '  permission url "https://docs.python.org/3/library/decimal.html" denied by no rule',
        "The discount was taken off twice. It is fixed in src/price.py; I may not push, so please do that yourself.",
        "turn      3 model calls, 32,340 tokens in (27,648 cached), 418 out, 1 premium request, 0.1318 AI credits,"
        " +1 -1 lines",
    ]
    whole = ttasks("show", browsed.agent, "--ledger", str(browsed.path), "--output").stdout
    assert whole.startswith(shown) and whole.endswith("\nThe discount was taken off twice. It is fixed.\n")
    hostile = ttasks("show", browsed.hostile_agent, "--ledger", str(browsed.path)).stdout
    assert "\x1b" not in hostile and "\u202e" not in hostile
    assert "tool sub-agent 202eevil: <script>" in hostile


def test_show_tells_how_an_agent_was_cut_off_and_only_the_last_of_many_steps(ttasks: Shell) -> None:
    def many(say: Saying) -> Iterator[AgentFact]:
        for number in range(60):
            yield say(ToolCallStarted, f"c{number}", "bash", {"command": f"echo {number}"})
        yield from cut_off(say, "a\n" * 30)

    ttasks.ledger.parent.mkdir()
    with SQLiteStore(ttasks.ledger) as store, TaskExecutor(store) as executor:
        executor.register(TaskType.AGENT, reports(many, "!its time was over"))
        task = Task.agent("clean up", title="cleaner")
        with pytest.raises(CopilotError):
            executor.execute(task)
    shown = ttasks("show", task.id).stdout
    assert "handler, copilot_error" in shown
    assert "(taken up again), the default model, through http://127.0.0.1:8080/v1" in shown
    assert "decides   nothing: all is denied\ntools     none\nlast 40 of 67 steps (--output prints all):\n" in shown
    assert "echo 26" not in shown and "tool bash: echo 27 -> unknown\n" in shown
    end = shown[shown.index("> Go on.") :].splitlines()
    assert end[:6] == [
        "> Go on.", "> ", "> It was: clean up", "tool bash: sleep 9999 -> aborted, 2.40 s",
        'tool ops/deploy: {"target": {"name": "prod", "dry": false}} -> unknown',
        '  permission mcp "ops/deploy" unanswered',
    ]  # fmt: skip
    assert end[6:] == [*["a"] * 12, "… 19 more lines", "error query: the connection was lost", "aborted: timeout"]
    assert "tool bash: echo 0 -> unknown\n" in ttasks("show", task.id, "--output").stdout


def test_an_unknown_or_ambiguous_id_is_an_error_with_exit_code_2(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    unknown = ttasks("show", "zzz")
    assert (unknown.returncode, "no graph and no task" in unknown.stderr) == (2, True)
    ambiguous = ttasks("show", "0")
    assert (ambiguous.returncode, "is not one id but" in ambiguous.stderr) == (2, True)


def test_events_are_printed_oldest_first_and_as_json_on_request(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    events = [json.loads(line) for line in ttasks("events", "--json").stdout.splitlines()]
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "LedgerCreated" and events[-1]["type"] == "GraphRunFinished"
    starts = ttasks("events", "--type", "TaskStarted").stdout.splitlines()
    assert len(starts) == 2 and all("TaskStarted" in line for line in starts)
    later = ttasks("events", "--after", str(len(events) - 1), "--json").stdout.splitlines()
    assert [json.loads(line)["position"] for line in later] == [len(events)]


@pytest.mark.parametrize("name", ["TaskFaild", "taskstarted"])
def test_events_of_a_type_that_there_is_not_are_no_empty_answer(name: str, ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    refused = ttasks("events", "--type", name)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.search(rf"no type of event is called '{name}'; did you mean 'Task(Failed|Started)'\?", refused.stderr)
    assert ttasks("events", "--type", "Nonsense").returncode == 2
    assert ttasks("events", "--type", "TaskFailed").returncode == 0


def test_all_output_and_nothing_else_is_shown_in_the_order_in_which_it_was_printed(ttasks: Shell) -> None:
    script = "echo a; sleep 0.05; echo b >&2; sleep 0.05; printf '\\e[32m1\\t2\\e[0m\\n10%%\\r100%%\\n\\ac'"
    ttasks.write("mixed.yaml", f'tasks:\n  mixed: {{bash: "{script}"}}\n')
    ttasks("run", "mixed.yaml")
    ((task_id,),) = ttasks.sql("SELECT id FROM tasks")
    assert ttasks("show", str(task_id), "--output").stdout == "a\nb\n1\t2\n100%\n\\x07c\n"


def test_verify_of_a_file_that_is_cut_off_says_what_to_do_and_not_to_verify(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    content = ttasks.ledger.read_bytes()
    ttasks.ledger.write_bytes(content[: len(content) // 2])
    found = ttasks("verify")
    assert (found.returncode, found.stdout) == (1, "")
    said = r"ttasks: \S+ledger\.db is too damaged to be checked \(.+\): restore it from a copy\n"
    assert re.fullmatch(said, found.stderr)


def test_verify_finds_an_edited_row_and_rebuild_mends_it(ttasks: Shell) -> None:
    ttasks.write("bad.yaml", BAD)
    ttasks("run", "bad.yaml")
    assert ttasks("verify").returncode == 0
    with contextlib.closing(sqlite3.connect(ttasks.ledger)) as connection:
        connection.execute("UPDATE tasks SET status = 'succeeded' WHERE name = 'broken'")
        connection.commit()
    found = ttasks("verify")
    assert found.returncode == 1
    assert 'status is "succeeded", its events say "failed"' in found.stdout
    assert ttasks("rebuild").stdout.startswith("rebuilt from")
    assert ttasks("verify").returncode == 0


def test_verify_names_the_first_bad_event_and_finds_a_cut_tail_by_its_head(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    head = ttasks("verify").stdout.split()[-1]
    with contextlib.closing(sqlite3.connect(ttasks.ledger)) as connection:
        for name in ("events_are_never_removed", "events_are_never_changed"):
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")
        connection.commit()
    cut = ttasks("verify", "--head", head)
    assert cut.returncode == 1 and f"no event has the hash {head}" in cut.stdout
    with contextlib.closing(sqlite3.connect(ttasks.ledger)) as connection:
        connection.execute(
            "UPDATE events SET data = replace(data, 'echo world', 'echo WORLD') WHERE type = 'TaskCreated'"
        )
        ((position,),) = connection.execute("SELECT position FROM events WHERE data GLOB '*WORLD*'").fetchall()
        connection.commit()
    changed = ttasks("verify")
    assert changed.returncode == 1
    assert f"the first is at event {position} (integrity)" in changed.stdout


def test_hostile_names_titles_and_output_can_not_steer_the_terminal(ttasks: Shell) -> None:
    ttasks.write(
        "hostile.yaml",
        'title: "\\e[2J [red]title[/red]"\n'
        "tasks:\n"
        '  "\\e]0;name\\a": {bash: "printf \'\\\\033[31mred\\\\n\'; exit 1"}\n',
    )
    printed = [ttasks("run", "hostile.yaml"), ttasks("ls"), ttasks("ls", "--tasks"), ttasks("show"), ttasks("events")]
    for done in printed:
        assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout
    assert "| red\n" in printed[0].stdout  # colours are for terminals, and all else is spelled out
    assert "\\x1b[2J [red]title[/red]" in printed[0].stdout


def test_prompts_and_agents_without_a_cli_fail_with_a_sentence_that_says_what_to_do(ttasks: Shell) -> None:
    env = "env: {COPILOT_CLI_PATH: /nowhere}"
    ttasks.write("all.yaml", f"tasks:\n  b: {{prompt: hi, {env}}}\n  c: {{agent: do, {env}}}\n")
    done = ttasks("run", "all.yaml")
    assert done.returncode == 1
    for name in "bc":
        assert f"{name}: failed: no Copilot CLI was found (/nowhere does not exist). Install it with" in done.stdout


def test_a_powershell_task_without_a_pwsh_fails_with_a_sentence_that_names_it(ttasks: Shell) -> None:
    ttasks.write("shells.yaml", "tasks:\n  a: {powershell: Get-Item ., env: {PATH: /nowhere}}\n")
    done = ttasks("run", "shells.yaml")
    assert done.returncode == 1
    assert "a: failed: pwsh could not be started: it is in no folder of PATH (/nowhere)" in done.stdout


def test_secret_values_of_a_workflow_are_in_no_file_of_the_ledger(ttasks: Shell) -> None:
    ttasks.write(
        "secret.yaml",
        "tasks:\n  a: {bash: 'test ${#API_TOKEN} = 13', env: {API_TOKEN: correct-horse, PLAIN: visible}}\n",
    )
    assert ttasks("run", "secret.yaml").returncode == 0
    files = [path.read_bytes() for path in ttasks.ledger.parent.iterdir()]
    assert not any(b"correct-horse" in content for content in files)
    assert any(b"visible" in content for content in files)
    ((shown,),) = ttasks.sql("SELECT env_digests FROM tasks")
    assert str(shown).startswith('{"API_TOKEN":"pbkdf2-sha256:')


SECRET = "correct-horse-battery"
SECRETIVE = f"""
title: deploy {SECRET}
tasks:
  log {SECRET} in: {{bash: 'echo $PASS; echo pin=4711; printf %s ${{PASS:0:9}}; sleep 0.3; echo ${{PASS:9}} rest'}}
  fails: {{bash: "echo 'no {SECRET}' >&2; exit 3", env: {{API_KEY: another-secret}}, after: [log {SECRET} in]}}
  late: {{bash: "true", after: [fails]}}
"""


def test_what_is_to_be_redacted_is_neither_printed_nor_in_any_file_of_the_ledger(ttasks: Shell) -> None:
    folder = ttasks.folder / SECRET
    folder.mkdir()
    (folder / "deploy.yaml").write_text(SECRETIVE)
    variables = {"PASS": SECRET, "TTASKS_REDACT": r"PASS,re:pin=\d{4,}", "TTASKS_LEDGER": f"{SECRET}/.ttasks/ledger.db"}
    done = ttasks("run", f"{SECRET}/deploy.yaml", **variables)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("deploy ***: 3 tasks") and ", ledger ***/.ttasks/ledger.db\n" in done.stdout
    assert done.stdout.count("log *** in | ***\n") == 2 and "log *** in | *** rest\n" in done.stdout
    assert "fails: failed: exited with code 3: no ***\n  | no ***\n" in done.stdout
    assert "late: blocked by fails" in done.stdout
    looked = [ttasks(command, **variables).stdout for command in ("show", "ls", "events")]
    held = b"".join(path.read_bytes() for path in (folder / ".ttasks").iterdir())
    for secret in (SECRET, "pin=4711", "another-secret"):
        assert secret not in "".join([done.stdout, *looked])
        assert secret.encode() not in held
    assert b"***/deploy.yaml" in held


def test_a_variable_that_says_wrongly_what_to_redact_exits_with_2_and_leaves_no_trace(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    done = ttasks("run", "good.yaml", TTASKS_REDACT="PASS,re:[a-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ttasks: TTASKS_REDACT: the pattern '[a-' is no regular expression: ")
    assert not ttasks.ledger.parent.exists()


def test_errors_of_the_command_are_redacted_too(ttasks: Shell) -> None:
    done = ttasks("run", f"{SECRET}.yaml", PASS=SECRET, TTASKS_REDACT="PASS")
    assert (done.returncode, done.stderr) == (
        2,
        "***.yaml: the workflow file can't be read: No such file or directory\n",
    )


def test_the_workflow_is_named_in_the_ledger_by_path_and_digest(ttasks: Shell) -> None:
    import hashlib

    path = ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    assert ttasks.sql("SELECT source_path, source_sha256 FROM graphs") == [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    ]


def test_fields_of_the_file_reach_the_task_and_the_graph(ttasks: Shell) -> None:
    (ttasks.folder / "sub").mkdir()
    ttasks.write(
        "fields.yaml",
        "max_workers: 2\n"
        "tasks:\n"
        "  a: {bash: 'pwd; echo $A', title: A title, cwd: sub, env: {A: 1.10}, timeout: 60, description: why}\n"
        "  b: {bash: exit 1, after: [a], finally: true, required: false, retries: {max_attempts: 2, backoff: 0.01}}\n",
    )
    assert ttasks("run", "fields.yaml").returncode == 0
    with SQLiteStore(ttasks.ledger) as store:
        (graph,) = [store.graphs[key] for key in store.graphs]
        a, b = graph
        assert (a.name, a.title, a.description, a.timeout) == ("a", "A title", "why", 60)
        assert a.result.output == f"{ttasks.folder / 'sub'}\n1.10\n"
        assert (graph.is_finally(b), graph.is_optional(b), b.attempts) == (True, True, 2)
    assert ttasks.sql("SELECT max_workers FROM runs") == [(2,)]


def test_cancel_ends_the_run_of_another_process_and_its_finally_tasks_still_run(ttasks: Shell) -> None:
    ttasks.write(
        "slow.yaml",
        "tasks: {slow: {bash: echo begun; sleep 1000}, next: {bash: 'true', after: slow},"
        " clean: {bash: 'true', after: next, finally: true}}",
    )
    with subprocess.Popen(
        [*TTASKS, "run", "slow.yaml"], cwd=ttasks.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        printed = ""
        for line in running.stdout:
            printed += line
            if "| begun" in line:
                ((graph,),) = ttasks.sql("SELECT id FROM graphs")
                cancelled = ttasks("cancel", str(graph))
    assert (cancelled.returncode, cancelled.stderr) == (0, "")
    assert cancelled.stdout.startswith(f"asked for: the run of graph {graph} is cancelled")
    assert running.returncode == 1
    assert "CANCELLED: 1 pending, 1 succeeded, 1 cancelled" in printed
    assert ttasks.sql("SELECT status, why FROM runs") == [("cancelled", "on request")]


def test_cancel_says_what_it_came_to(ttasks: Shell) -> None:
    with SQLiteStore(ttasks.ledger) as store:
        task, graph = Task.bash("true", title="later"), TaskGraph(title="idle")
        store.tasks.save(task)
        store.graphs.save(graph)
    assert ttasks("cancel", task.id).stdout == "cancelled: task 'later'\n"
    assert ttasks("cancel", task.id).stdout == "nothing to do: task 'later' is already cancelled\n"
    refused = ttasks("cancel", graph.id)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "graph 'idle'" in refused.stderr and "is not running" in refused.stderr
    with SQLiteStore(ttasks.ledger) as store:
        del store.tasks[task.id]
    gone = ttasks("cancel", task.id)
    assert (gone.returncode, gone.stdout) == (2, "")
    assert "was deleted" in gone.stderr


def test_a_reader_who_has_seen_enough_is_no_error(ttasks: Shell) -> None:
    ttasks.write("good.yaml", GOOD)
    ttasks("run", "good.yaml")
    piped = subprocess.run(
        f"{sys.executable} -c 'from ttasks.cli import main; main()' events | head -n 1",
        shell=True,
        cwd=ttasks.folder,
        capture_output=True,
        text=True,
    )
    assert piped.stdout.startswith("1 ") and "Traceback" not in piped.stderr
