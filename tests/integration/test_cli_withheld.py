"""What a run needs that its ledger withholds: from the workflow file as it was, or from the environment. And what
differs of the environment. Each hint that is printed is run."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Command, Running
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph
from ttasks.cli.withheld import _fits

HANGS = "if [ ! -e go ]; then touch started; exec sleep 60; fi"
ENV = "{API_KEY: linux-x64}"
FILE = f"""
tasks:
  one:
    bash: |
      echo "restoring linux-x64" >> log
      {HANGS}
      echo "done with $API_KEY" >> log
    env: {ENV}
"""
VALUE = {"API_KEY": "linux-x64"}


@pytest.fixture
def ttasks(outside_git: Path) -> Iterator[Command]:
    command = Command(outside_git)
    yield command
    command.clean_up()


def started(ttasks: Command, text: str = FILE, **variables: str) -> Running:
    (ttasks.folder / "started").unlink(missing_ok=True)
    ttasks.write("a.yaml", text)
    run = ttasks.start("run", "a.yaml", **variables)
    ttasks.await_file("started")
    return run


def change(ttasks: Command) -> None:
    with (ttasks.folder / "a.yaml").open("a") as file:
        file.write("# changed\n")


def go(ttasks: Command) -> None:
    (ttasks.folder / "go").touch()


def words_of(line: str) -> list[str]:
    """Return the arguments of the command in a printed hint."""
    _, _, words = line.partition("ttasks ")
    return shlex.split(words.partition("  (")[0])


def hint_in(printed: str, what: str) -> list[str]:
    return words_of(next(line for line in printed.splitlines() if line.startswith(what)))


# --- from the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["resume"], ["resume", "--env", "API_KEY"], ["run", "--resume", "a.yaml"]], ids=" ".join
)
def test_what_is_withheld_is_taken_from_the_file_as_it_was(ttasks: Command, arguments: list[str]) -> None:
    started(ttasks).kill()
    (payload,) = ttasks.sql("SELECT payload FROM tasks")
    assert "***" in payload[0] and "linux-x64" not in payload[0]
    go(ttasks)
    done = ttasks(*arguments, **VALUE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digest" not in done.stdout
    assert (ttasks.folder / "log").read_text() == "restoring linux-x64\n" * 2 + "done with linux-x64\n"


def test_retry_takes_it_from_the_file_too(ttasks: Command) -> None:
    ttasks.write("a.yaml", FILE.replace("exec sleep 60", "exit 1"))
    failed = ttasks("run", "a.yaml")
    assert failed.returncode == 1
    go(ttasks)
    done = ttasks(*hint_in(failed.stdout, "Carry on: "))
    assert (done.returncode, done.stderr) == (0, "")
    assert (ttasks.folder / "log").read_text().endswith("restoring linux-x64\ndone with linux-x64\n")


def test_a_folder_that_is_withheld_comes_from_the_file_as_well(ttasks: Command) -> None:
    (ttasks.folder / "linux-x64").mkdir()
    text = f"tasks:\n  one: {{bash: 'cd ..; {HANGS}; pwd >> log', cwd: linux-x64, env: {ENV}}}\n"
    started(ttasks, text).kill()
    assert "***" in ttasks.sql("SELECT cwd FROM tasks")[0][0]
    go(ttasks)
    assert ttasks("resume").returncode == 0


def test_a_name_that_is_withheld_hides_no_task(ttasks: Command) -> None:
    started(ttasks, FILE.replace("one:", "linux-x64:").replace("\ntasks:", "title: t\ntasks:")).kill()
    assert ttasks.sql("SELECT name FROM tasks") == [("***",)]
    go(ttasks)
    assert ttasks("resume").returncode == 0


def test_a_plain_variable_is_recorded_as_it_is_and_in_nobody_s_way(ttasks: Command) -> None:
    started(ttasks, FILE.replace("API_KEY", "CACHE_KEY")).kill()
    ((payload, env),) = ttasks.sql("SELECT payload, env FROM tasks")
    assert "linux-x64" in payload and json.loads(env) == {"CACHE_KEY": "linux-x64"}
    change(ttasks)
    go(ttasks)
    assert ttasks("resume").returncode == 0


def test_a_task_that_was_changed_since_takes_nothing_from_the_file(ttasks: Command) -> None:
    started(ttasks).kill()
    go(ttasks)
    with SQLiteStore(ttasks.ledger) as store:
        (task,) = store.tasks.values()
        task.payload = "echo of another linux-x64 ***"
        store.tasks.save(task)
    refused = ttasks("resume", "--env", "API_KEY", **VALUE)
    assert refused.returncode == 0, "its own text is not withheld"
    assert (ttasks.folder / "log").read_text() == "restoring linux-x64\n"


@pytest.mark.parametrize(
    ("text", "recorded", "fits"),
    [
        ("a secret b", "a *** b", True),
        ("a s b s c", "a *** b *** c", True),
        ("s", "***", True),
        ("s and s", "***", True),
        ("a b", "a b", True),
        ("a b", "a c", False),
        ("a secret c", "a *** b", False),
        ("x secret b", "a *** b", False),
        ("ab", "ab***b", False),
        ("a s x s c", "a *** b *** c", False),
    ],
)
def test_a_text_fits_where_masks_stand_for_parts_of_it(text: str, recorded: str, fits: bool) -> None:
    assert _fits(text, recorded) is fits


# --- from the environment, and hints ---------------------------------------------------------------------------------

ONLY_VARIABLE = FILE.replace("restoring linux-x64", "restoring")


@pytest.mark.parametrize("is_changed", [False, True])
def test_the_hint_after_an_interruption_works(ttasks: Command, is_changed: bool) -> None:
    run = started(ttasks, ONLY_VARIABLE)
    if is_changed:
        change(ttasks)
    code, printed = run.end(signal.SIGTERM)
    assert code != 0
    words = hint_in(printed, "Go on with it: ")
    assert ("--env" in words) is is_changed
    go(ttasks)
    done = ttasks(*words, **VALUE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (ttasks.folder / "log").read_text().endswith("done with linux-x64\n")


@pytest.mark.parametrize("is_changed", [False, True])
def test_the_hints_about_a_killed_run_work(ttasks: Command, is_changed: bool) -> None:
    started(ttasks, ONLY_VARIABLE).kill()
    if is_changed:
        change(ttasks)
    listed = hint_in(ttasks("resume", "--list").stdout, "  go on with it: ")
    go(ttasks)
    of_run = hint_in(ttasks("run", "a.yaml", **VALUE).stdout, "the latest run of this file was interrupted")
    assert listed == of_run
    assert ttasks(*listed, **VALUE).returncode == 0


def test_where_a_script_can_not_be_given_again_no_hint_says_so(ttasks: Command) -> None:
    run = started(ttasks)
    change(ttasks)
    _, printed = run.end(signal.SIGTERM)
    assert "Go on with it" not in printed and "ttasks resume" not in printed
    assert "it can't go on by a command: the ledger withholds a script or folder of it" in printed
    assert "a.yaml is not what it was then" in printed
    refused = ttasks("resume", "--env", "API_KEY", **VALUE)
    assert refused.returncode == 2
    assert "task 'one' needs its payload" in refused.stderr and "--env" not in refused.stderr
    listed = ttasks("resume", "--list").stdout
    assert "ttasks resume" not in listed and "withholds" in listed


def test_after_a_failure_a_finally_task_that_is_repeated_needs_its_variables_too(ttasks: Command) -> None:
    ttasks.write(
        "a.yaml",
        "tasks:\n  one: {bash: 'echo \"# changed\" >> a.yaml; test -e go'}\n"
        "  last: {bash: 'echo $API_KEY >> log', finally: true, after: one, env: {API_KEY: linux-x64}}\n",
    )
    failed = ttasks("run", "a.yaml")
    assert failed.returncode == 1
    words = hint_in(failed.stdout, "Carry on: ")
    assert words[-2:] == ["--env", "API_KEY"]
    go(ttasks)
    refused = ttasks("retry")
    assert refused.returncode == 2 and "--env API_KEY, from the environment" in refused.stderr
    assert ttasks(*words, **VALUE).returncode == 0
    assert ttasks.log() == ["linux-x64", "linux-x64"]


@pytest.mark.parametrize("is_same", [False, True])
def test_a_value_that_is_not_what_it_was_is_said_and_counts(ttasks: Command, is_same: bool) -> None:
    started(ttasks, ONLY_VARIABLE).kill()
    go(ttasks)
    value = "linux-x64" if is_same else "linux-arm"
    done = ttasks("resume", "--env", "API_KEY", API_KEY=value)
    assert done.returncode == 0
    said = "API_KEY is not the value that it was: its digest differs from what is recorded of one"
    assert (said in done.stdout) is not is_same
    assert (ttasks.folder / "log").read_text().endswith(f"done with {value}\n")


def test_others_are_named_only_where_they_can_go_on(ttasks: Command) -> None:
    started(ttasks).kill()
    started(ttasks, FILE.replace("one:", "two:")).kill()
    change(ttasks)
    started(ttasks, "tasks:\n  three: {bash: '" + HANGS + "'}\n").kill()
    go(ttasks)
    refused = ttasks("resume", "--env", "API_KEY", **VALUE)
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if "one of 3" in line]
    hints = line.partition("The others: ")[2].split("; ")
    assert len(hints) == 1
    assert ttasks(*words_of(hints[0]), **VALUE).returncode == 0


def test_the_hints_after_a_decision_work(ttasks: Command) -> None:
    started(ttasks, ONLY_VARIABLE + "    on_interrupted: ask\n").kill()
    change(ttasks)
    task = ttasks.task_id("one")
    said = ttasks("resolve", task, "--rerun")
    words = hint_in(said.stdout, "Go on with it: ")
    assert words[-2:] == ["--env", "API_KEY"]
    go(ttasks)
    assert ttasks(*words, **VALUE).returncode == 0


def test_the_hint_about_a_task_that_ran_by_itself_works(ttasks: Command) -> None:
    program = (
        "from ttasks import *\n"
        "with SQLiteStore('.ttasks/ledger.db') as store:\n"
        f"    TaskExecutor(store).execute(Task.bash('{HANGS}; echo $API_KEY >> log', env={VALUE!r}))\n"
    )
    run = ttasks.start_process([sys.executable, "-c", program])
    ttasks.await_file("started")
    run.kill()
    words = hint_in(ttasks("resume", "--list").stdout, "  go on with it: ")
    assert words[-2:] == ["--env", "API_KEY"]
    go(ttasks)
    assert ttasks(*words, **VALUE).returncode == 0
    assert ttasks.log() == ["linux-x64"]


def test_a_run_of_python_says_how_to_give_a_script_again(ttasks: Command) -> None:
    ttasks.ledger.parent.mkdir()
    with SQLiteStore(ttasks.ledger) as store:
        graph = TaskGraph()
        graph.add(Task.bash("exit 3; echo linux-x64", env=VALUE))
        graph.run(TaskExecutor(store))
    refused = ttasks("retry", "--env", "API_KEY", **VALUE)
    assert refused.returncode == 2
    assert "task.give_again(payload=…)" in refused.stderr


def test_a_retry_of_what_was_interrupted_names_a_resume_that_works(ttasks: Command) -> None:
    started(ttasks, ONLY_VARIABLE).kill()
    change(ttasks)
    refused = ttasks("retry")
    hints = re.findall(r"\(ttasks ([^)]*)\)", refused.stderr)
    assert len(hints) == 2 and all("--env API_KEY" in each for each in hints)
    go(ttasks)
    assert ttasks(*shlex.split(hints[0]), **VALUE).returncode == 0


def test_a_name_that_does_not_exist_is_warned_of_in_a_sentence(ttasks: Command) -> None:
    ttasks.write("a.yaml", "tasks: {one: {bash: 'true'}}\n")
    done = ttasks("run", "a.yaml", TTASKS_REDACT="NPM_TOKEN,hunter2")
    assert done.returncode == 0
    assert done.stderr.startswith("ttasks: TTASKS_REDACT, item 2 names a variable that does not exist")
    assert done.stderr.count("\n") == 1 and "hunter2" not in done.stderr + done.stdout
    refused = ttasks("run", "a.yaml", TTASKS_REDACT="NPM_TOKEN,hunter 2")
    assert refused.returncode == 2
    assert "item 2 is not the name of an environment variable" in refused.stderr and "hunter" not in refused.stderr


def test_what_is_inherited_is_masked_in_what_the_command_prints(ttasks: Command) -> None:
    ttasks.write("a.yaml", 'tasks: {one: {bash: \'echo "with $HUSH_TOKEN"; echo "no $HUSH_TOKEN" >&2; exit 1\'}}\n')
    done = ttasks("run", "a.yaml", HUSH_TOKEN="Tr0ub4dor-and-3")
    assert "with ***" in done.stdout and "no ***" in done.stdout
    assert "Tr0ub4dor" not in done.stdout + done.stderr
    assert not any(b"Tr0ub4dor" in content for content in ttasks.files().values())
    opened = ttasks("run", "a.yaml", HUSH_TOKEN="Tr0ub4dor-and-3", TTASKS_REDACT="!HUSH_*")
    assert "with Tr0ub4dor-and-3" in opened.stdout


# --- the environment -------------------------------------------------------------------------------------------------

SHIP = f"tasks:\n  ship: {{bash: '{HANGS}; echo ship to \"[$TARGET]\"'}}\n"


@pytest.mark.parametrize("arguments", [["resume"], ["run", "--resume", "a.yaml"]], ids=" ".join)
def test_what_differs_is_said_before_anything_starts(ttasks: Command, arguments: list[str]) -> None:
    started(ttasks, SHIP, TARGET="staging", MODE="fast", HUSH_TOKEN="before-It-2").kill()
    go(ttasks)
    done = ttasks(*arguments, MODE="slow", FRESH="1", HUSH_TOKEN="after-It-2", SHLVL="7", TERM="odd")
    assert done.returncode == 0
    said = done.stdout.splitlines()[0]
    assert said.endswith("counts as it is now. not set any more: TARGET; changed: MODE; new: FRESH")
    assert "staging" not in said and "slow" not in said
    assert "ship to []" in done.stdout
    assert list(ttasks.ledger.parent.glob("*-env-*")) == []


def test_in_the_same_environment_nothing_is_said(ttasks: Command) -> None:
    started(ttasks, SHIP, TARGET="staging").kill()
    go(ttasks)
    done = ttasks("resume", TARGET="staging")
    assert done.returncode == 0
    assert "environment" not in done.stdout


def test_retry_compares_with_the_run_that_it_carries_on_with(ttasks: Command) -> None:
    ttasks.write("a.yaml", "tasks:\n  ship: {bash: 'test \"$TARGET\" = production'}\n")
    assert ttasks("run", "a.yaml", TARGET="staging").returncode == 1
    done = ttasks("retry", TARGET="production")
    assert done.returncode == 0
    assert "changed: TARGET" in done.stdout
    assert list(ttasks.ledger.parent.glob("*-env-*")) == []


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_without_the_note_it_is_said_that_nothing_can_be_compared(ttasks: Command, command: str) -> None:
    run = started(ttasks, SHIP, TARGET="staging")
    run.kill() if command == "resume" else run.end(signal.SIGINT)
    (note,) = ttasks.ledger.parent.glob("*-env-*")
    note.unlink()
    go(ttasks)
    done = ttasks(command)
    assert done.returncode == 0
    assert "the environment can't be compared with that of graph" in done.stdout


def test_no_value_of_the_environment_is_in_any_file(ttasks: Command) -> None:
    started(ttasks, SHIP, TARGET="Staging-of-7", HUSH_TOKEN="Before-It-2").kill()
    for file in ttasks.ledger.parent.iterdir():
        assert b"Staging-of-7" not in file.read_bytes() and b"Before-It-2" not in file.read_bytes()
