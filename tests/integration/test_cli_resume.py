"""What was interrupted, seen from outside: the real command, real bash, real signals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import TTASKS, Command, Running
from processes import until
from ttasks import SQLiteStore
from ttasks.cli.resume import NOTHING

RELEASE = """
title: release
tasks:
  build: {bash: "echo build >> log"}
  upload: {bash: "echo upload >> log; if [ ! -e go ]; then touch started; sleep 100; fi", after: [build]}
  announce: {bash: "echo announce >> log", after: [upload]}
  clean: {bash: "echo clean >> log", after: [announce], finally: true}
"""
"""`upload` hangs until there is a file `go`."""

FAILING = """
title: failing
tasks:
  build: {bash: "echo build >> log"}
  check: {bash: "echo check >> log; [ -e fixed ]", after: [build]}
  ship: {bash: "echo ship >> log", after: [check]}
  clean: {bash: "echo clean >> log", after: [ship], finally: true}
"""
"""`check` fails until there is a file `fixed`."""


INTERRUPTED = {"build": "succeeded", "upload": "interrupted", "announce": "pending", "clean": "pending"}
"""Where the tasks of RELEASE stand when it was interrupted in good order."""


@pytest.fixture
def ttasks(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.clean_up()


def started(ttasks: Command, *arguments: str, text: str = RELEASE, **variables: str) -> Running:
    """Start a run of a workflow, or what else is said, and return once its task hangs."""
    (ttasks.folder / "started").unlink(missing_ok=True)
    if not arguments:
        ttasks.write("release.yaml", text)
    run = ttasks.start(*(arguments or ("run", "release.yaml")), **variables)
    ttasks.await_file("started")
    return run


def killed(ttasks: Command, *arguments: str, text: str = RELEASE, **variables: str) -> None:
    """Start a run of a workflow, or what else is said, and kill it where its task hangs."""
    started(ttasks, *arguments, text=text, **variables).kill()


def go(ttasks: Command, name: str = "go") -> None:
    (ttasks.folder / name).touch()


def last_lines(text: str, count: int = 2) -> list[str]:
    return text.splitlines()[-count:]


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [["ls"], ["ls", "--tasks"], ["show"], ["resume", "--list"]], ids=" ".join)
def test_looking_at_a_dead_run_shows_it_as_interrupted_and_writes_nothing(ttasks: Command, look: list[str]) -> None:
    killed(ttasks)
    before = ttasks.files()
    shown = ttasks(*look)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "interrupted" in shown.stdout
    assert "running" not in shown.stdout.replace("was running", "")
    assert ttasks.files() == before
    assert len(ttasks.left()) > 0, "looking ends nothing either"


def test_a_task_that_waited_for_its_retry_is_not_listed_as_running(ttasks: Command) -> None:
    upload = "  upload: {bash: 'touch started; exit 1', after: [build], retries: {max_attempts: 2, backoff: 100}}"
    ttasks.write("waits.yaml", f"tasks:\n  build: {{bash: 'true'}}\n{upload}\n")
    run = ttasks.start("run", "waits.yaml")
    run.until("trying again")
    run.kill()
    listed = ttasks("resume", "--list").stdout
    assert "waited for its retry: upload" in listed
    assert "was running" not in listed


def test_a_task_that_was_deleted_by_itself_is_listed_with_its_graph(ttasks: Command) -> None:
    killed(ttasks)
    with SQLiteStore(ttasks.ledger) as store:
        for task in store.tasks.values():
            del store.tasks[task.id]
    listed = ttasks("resume", "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "was running: upload" in listed.stdout
    assert "owed: clean" in listed.stdout


def test_a_killed_run_is_resumed_to_its_end_and_what_it_left_is_ended(ttasks: Command) -> None:
    killed(ttasks)
    assert ttasks.left() != []
    go(ttasks)
    done = ttasks("resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert ttasks.log() == ["build", "upload", "upload", "announce", "clean"]
    assert ttasks.left() == []
    assert "release: going on with run 1, 4 tasks" in done.stdout
    assert "\nOK: 3 succeeded in " in done.stdout
    assert ttasks("verify").returncode == 0


def test_with_nothing_interrupted_resume_says_so_and_exits_with_0(ttasks: Command) -> None:
    go(ttasks)
    ttasks.write("release.yaml", RELEASE)
    ttasks("run", "release.yaml")
    before = ttasks.files()
    done = ttasks("resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{NOTHING}\n"
    by_id = ttasks("resume", ttasks.graph_id())
    assert (by_id.returncode, by_id.stderr) == (0, "")
    assert by_id.stdout.startswith("nothing to resume: ") and "was not interrupted" in by_id.stdout
    assert ttasks.files() == before


def test_a_resumed_run_that_fails_exits_with_1_and_names_retry(ttasks: Command) -> None:
    killed(ttasks, text=RELEASE.replace("echo announce", "exit 3; echo announce"))
    go(ttasks)
    done = ttasks("resume")
    assert done.returncode == 1
    assert last_lines(done.stdout)[0] == f"Carry on: ttasks retry {ttasks.graph_id()[-8:]}"


def test_ctrl_c_of_a_resumed_run_cancels_it_and_exits_with_130(ttasks: Command) -> None:
    killed(ttasks)
    code, printed = started(ttasks, "resume").end(signal.SIGINT)
    assert code == 130
    assert ttasks.statuses() == {
        "build": "succeeded",
        "upload": "cancelled",
        "announce": "pending",
        "clean": "succeeded",
    }
    assert last_lines(printed)[0].startswith("Carry on: ttasks retry ")


def test_one_graph_of_two_is_resumed_by_a_part_of_its_id(ttasks: Command) -> None:
    killed(ttasks)
    first = ttasks.graph_id()
    killed(ttasks)
    second = ttasks.graph_id()
    go(ttasks)
    done = ttasks("resume", first[-8:])
    assert done.returncode == 0 and first in done.stdout
    assert ttasks.sql("SELECT id, status FROM graphs ORDER BY created_at") == [
        (first, "succeeded"),
        (second, "running"),
    ]
    assert second[-8:] in ttasks("resume", "--list").stdout


def test_an_id_that_names_nothing_is_refused_with_2(ttasks: Command) -> None:
    killed(ttasks)
    before = ttasks.files()
    done = ttasks("resume", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no graph and no task whose id begins or ends with 'nowhere'" in done.stderr
    assert ttasks.files() == before


ALONE = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor
with SQLiteStore(".ttasks/ledger.db") as store:
    TaskExecutor(store).execute(Task.bash(sys.argv[1], title="alone"))
"""


def alone_killed(ttasks: Command) -> str:
    script = "echo alone >> log; if [ ! -e go ]; then touch started; sleep 100; fi"
    run = ttasks.start_process([sys.executable, "-c", ALONE, script])
    ttasks.await_file("started").unlink()
    run.kill()
    return ttasks.task_id("alone")


def test_a_task_without_a_graph_is_resumed_by_its_id(ttasks: Command) -> None:
    task_id = alone_killed(ttasks)
    go(ttasks)
    done = ttasks("resume", task_id[:13])
    assert (done.returncode, done.stderr) == (0, "")
    assert "alone: succeeded" in done.stdout
    assert ttasks.log() == ["alone", "alone"]
    assert ttasks.left() == []


def test_ctrl_c_of_a_resumed_task_cancels_it_and_exits_with_130(ttasks: Command) -> None:
    alone_killed(ttasks)
    code, printed = started(ttasks, "resume").end(signal.SIGINT)
    assert (code, ttasks.left()) == (130, [])
    assert ttasks.sql("SELECT status FROM tasks") == [("cancelled",)]
    assert "alone: cancelled" in printed


def test_sigterm_of_a_resumed_task_interrupts_it_again_and_names_resume(ttasks: Command) -> None:
    task_id = alone_killed(ttasks)
    code, printed = started(ttasks, "resume").end(signal.SIGTERM)
    assert (code, ttasks.left()) == (143, [])
    assert ttasks.sql("SELECT status FROM tasks") == [("interrupted",)]
    assert last_lines(printed, 1) == [f"Go on with it: ttasks resume {task_id[-8:]}"]
    go(ttasks)
    assert ttasks("resume").returncode == 0


def test_a_resumed_task_that_fails_exits_with_1_and_says_why(ttasks: Command) -> None:
    run = ttasks.start_process(
        [sys.executable, "-c", ALONE, "[ -e go ] && { echo boom >&2; exit 3; }; touch started; sleep 100"]
    )
    ttasks.await_file("started")
    run.kill()
    go(ttasks)
    done = ttasks("resume")
    assert done.returncode == 1
    assert "failed after" in done.stdout and "boom" in done.stdout


def test_a_task_of_an_interrupted_run_is_listed_with_that_run_and_goes_on_only_with_it(ttasks: Command) -> None:
    killed(ttasks)
    graph_id, task_id = ttasks.graph_id(), ttasks.task_id("upload")
    before = ttasks.runners()
    assert f"go on with it: ttasks resume {graph_id[-8:]}" in ttasks("resume", "--list", task_id).stdout
    listed = ttasks("resume", "--list", ttasks.task_id("build")).stdout
    assert listed == f"nothing to resume: {ttasks.task_id('build')} was not interrupted\n"
    done = ttasks("resume", task_id)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"is of a run of graph {graph_id}, which is interrupted too: resume that" in done.stderr
    assert ttasks.runners() == before


def test_what_was_found_out_later_does_not_count_as_heard_of(ttasks: Command) -> None:
    killed(ttasks, text=RELEASE.replace("upload: {", "upload: {on_interrupted: ask, "))
    ttasks("resume")
    task_id = ttasks.task_id("upload")
    ttasks("resolve", task_id, "--rerun")
    with SQLiteStore(ttasks.ledger, read_only=True) as store:
        (work,) = store.interrupted()
        found_at = next(event.recorded_at for event in store.events(type="TaskInterrupted"))
        assert work.id == task_id
        assert work.heard_at is not None and work.heard_at < found_at


# --- who lives is left alone ------------------------------------------------------------------------------------------


def test_a_live_run_is_not_resumed(ttasks: Command) -> None:
    run = started(ttasks)
    before = ttasks.runners()
    done = ttasks("resume", ttasks.graph_id())
    assert (done.returncode, done.stdout) == (1, "")
    assert "is running already. Nothing was written" in done.stderr
    everything = ttasks("resume")
    assert (everything.returncode, everything.stderr) == (0, "")
    assert everything.stdout == f"{NOTHING}\n"
    retried = ttasks("retry")
    assert (retried.returncode, retried.stdout) == (1, "")
    assert "is running already" in retried.stderr
    assert ttasks.runners() == before
    assert run.process.poll() is None


def test_a_second_resume_while_the_first_lives_is_refused_and_writes_nothing(ttasks: Command) -> None:
    killed(ttasks)
    first = started(ttasks, "resume")
    before = ttasks.runners()
    second = ttasks("resume", ttasks.graph_id()[-8:])
    assert (second.returncode, second.stdout) == (1, "")
    assert "is running already. Nothing was written" in second.stderr
    assert ttasks.runners() == before
    assert first.process.poll() is None


def test_a_second_resume_of_a_task_while_the_first_lives_is_refused(ttasks: Command) -> None:
    task_id = alone_killed(ttasks)
    started(ttasks, "resume")
    before = ttasks.runners()
    second = ttasks("resume", task_id)
    assert (second.returncode, second.stdout) == (1, "")
    assert "is RUNNING" in second.stderr and "Nothing was written" in second.stderr
    assert ttasks.runners() == before


def test_a_task_that_resumes_the_ledger_that_it_is_of_does_not_end_itself(ttasks: Command) -> None:
    wait = "if [ ! -e go ]; then touch started; until [ -e go ]; do sleep 0.02; done; fi"
    script = wait + '; "$@" resume > resumed.$$ 2>&1; echo $? >> codes'
    ttasks.write("self.sh", script)
    words = " ".join(f"'{word}'" for word in TTASKS)
    workflow = f"""
title: own
tasks:
  own: {{bash: {json.dumps(f"bash self.sh {words}")}}}
"""
    killed(ttasks, text=workflow)
    go(ttasks)
    until(lambda: len(ttasks.log("codes")) == 2)  # the one that was left, and the one that it started in its own place
    until(lambda: ttasks.left() == [])
    assert ttasks.log("codes") == ["0", "0"]
    assert sorted(path.read_text().startswith("nothing to resume") for path in ttasks.folder.glob("resumed.*")) == [
        False,
        True,
    ]
    assert ttasks.statuses() == {"own": "succeeded"}


# --- signals ----------------------------------------------------------------------------------------------------------


def check_interrupted(ttasks: Command, printed: str) -> None:
    """Check what holds of a run that was interrupted in good order, and that it can go on."""
    graph_id = ttasks.graph_id()
    assert ttasks.left() == []
    assert ttasks.statuses() == INTERRUPTED
    assert ttasks.sql("SELECT status FROM runs") == [("interrupted",)]
    assert "owed: clean" in ttasks("resume", "--list").stdout
    assert f"Go on with it: ttasks resume {graph_id[-8:]}\n" in printed
    go(ttasks)
    done = ttasks("resume", graph_id[-8:])
    assert (done.returncode, done.stderr) == (0, "")
    assert ttasks.log() == ["build", "upload", "upload", "announce", "clean"]
    assert ttasks.sql("SELECT run, status FROM runs") == [(1, "succeeded")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_interrupts_the_run_in_good_order_and_resume_finishes_it(
    ttasks: Command, number: signal.Signals
) -> None:
    code, printed = started(ttasks).end(number)
    assert code == 128 + number
    check_interrupted(ttasks, printed)


def in_terminal(ttasks: Command) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run whose terminal this is; return it, and our end of the terminal."""
    ttasks.write("release.yaml", RELEASE)
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*TTASKS, "run", "release.yaml"],
        cwd=ttasks.folder,
        env=ttasks.environment(),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    ttasks.await_file("started")
    return process, ours


def test_a_terminal_that_is_closed_interrupts_the_run_in_good_order(ttasks: Command) -> None:
    process, ours = in_terminal(ttasks)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    check_interrupted(ttasks, ttasks("resume", "--list").stdout.replace("  go on", "Go on"))


def test_ctrl_c_typed_in_a_terminal_cancels_the_run(ttasks: Command) -> None:
    process, ours = in_terminal(ttasks)
    os.write(ours, b"\x03")
    try:
        assert process.wait(60) == 130
    finally:
        os.close(ours)
    assert ttasks.statuses() == {**INTERRUPTED, "upload": "cancelled", "clean": "succeeded"}
    assert ttasks.left() == []


def test_a_run_under_nohup_outlives_its_terminal(ttasks: Command) -> None:
    ttasks.write("release.yaml", RELEASE.replace("sleep 100", "until [ -e go ]; do sleep 0.02; done"))
    run = ttasks.start_process(["nohup", *TTASKS, "run", "release.yaml"])
    ttasks.await_file("started")
    run.process.send_signal(signal.SIGHUP)
    go(ttasks)
    assert run.end()[0] == 0
    assert ttasks.log() == ["build", "upload", "announce", "clean"]


def test_one_ctrl_c_cancels_runs_finally_tasks_and_retry_carries_on(ttasks: Command) -> None:
    code, printed = started(ttasks).end(signal.SIGINT)
    first = ttasks.graph_id()
    assert (code, ttasks.left()) == (130, [])
    assert ttasks.log() == ["build", "upload", "clean"]
    assert f"Carry on: ttasks retry {first[-8:]}\n" in printed and "ttasks resume" not in printed
    assert printed.count("Ctrl-C: what runs is cancelled; finally tasks still run. Ctrl-C again stops at once") == 1
    assert ttasks("resume").stdout.startswith("nothing to resume")
    go(ttasks)
    done = ttasks("retry", first[-8:])
    assert (done.returncode, done.stderr) == (0, "")
    assert ttasks.log() == ["build", "upload", "clean", "upload", "announce", "clean"]
    shared = """SELECT name FROM tasks WHERE id IN
        (SELECT task_id FROM graph_tasks GROUP BY task_id HAVING count(DISTINCT graph_id) = 2)"""
    assert ttasks.sql(shared) == [("build",)]
    assert ttasks.sql("SELECT derived_from FROM graphs ORDER BY created_at") == [(None,), (first,)]


# Its finally task depends on what hangs: one that does not starts with the first Ctrl-C.
STUBBORN = RELEASE.replace("touch started;", "trap '' TERM; touch started; while :; do sleep 0.1; done;").replace(
    "after: [announce], finally", "after: [upload], finally"
)


def test_a_second_ctrl_c_interrupts_at_once_and_the_finally_task_is_owed(ttasks: Command) -> None:
    run = started(ttasks, text=STUBBORN)
    run.process.send_signal(signal.SIGINT)
    until(lambda: ttasks.sql("SELECT 1 FROM events WHERE type = 'GraphCancelRequested'"))
    code, printed = run.end(signal.SIGINT)
    assert (code, ttasks.left()) == (130, [])
    assert ttasks.statuses() == INTERRUPTED
    assert f"Go on with it: ttasks resume {ttasks.graph_id()[-8:]}\n" in printed
    listed = ttasks("resume", "--list").stdout
    assert "it was cancelled: only what is owed will run" in listed and "owed: clean" in listed
    resumed = ttasks("resume")
    assert resumed.returncode == 1, "a cancelled run is not ok"
    assert ttasks.log() == ["build", "upload", "clean"]
    assert ttasks.statuses() == {**INTERRUPTED, "upload": "cancelled", "clean": "succeeded"}
    assert f"Carry on: ttasks retry {ttasks.graph_id()[-8:]}\n" in resumed.stdout
    go(ttasks)
    assert ttasks("retry").returncode == 0


CLEANING = """
title: cleaning
tasks:
  work: {bash: "echo work >> log; exit 1"}
  clean:
    bash: "echo clean >> log; touch started; until [ -e go ]; do sleep 0.02; done; echo cleaned >> log"
    after: [work]
    finally: true
"""


def test_ctrl_c_lets_a_finally_task_that_runs_go_on(ttasks: Command) -> None:
    run = started(ttasks, text=CLEANING)
    run.process.send_signal(signal.SIGINT)
    until(lambda: ttasks.sql("SELECT 1 FROM events WHERE type = 'GraphCancelRequested'"))
    go(ttasks)
    assert run.end()[0] == 130
    assert ttasks.log() == ["work", "clean", "cleaned"]
    assert ttasks.statuses() == {"work": "failed", "clean": "succeeded"}


def test_a_second_ctrl_c_interrupts_a_finally_task_and_it_is_owed_again(ttasks: Command) -> None:
    run = started(ttasks, text=CLEANING)
    run.process.send_signal(signal.SIGINT)
    until(lambda: ttasks.sql("SELECT 1 FROM events WHERE type = 'GraphCancelRequested'"))
    code, printed = run.end(signal.SIGINT)
    assert (code, ttasks.left()) == (130, [])
    assert ttasks.statuses() == {"work": "failed", "clean": "interrupted"}
    assert "Go on with it: ttasks resume" in printed
    assert "owed: clean" in ttasks("resume", "--list").stdout
    go(ttasks)
    assert ttasks("resume").returncode == 1
    assert ttasks.log() == ["work", "clean", "clean", "cleaned"]
    assert ttasks.sql("SELECT status FROM runs") == [("cancelled",)]


def test_ctrl_c_of_the_first_of_two_resumed_runs_leaves_the_second_interrupted(ttasks: Command) -> None:
    killed(ttasks)
    killed(ttasks)
    second = ttasks.graph_id()
    code, _ = started(ttasks, "resume").end(signal.SIGINT)
    assert code == 130
    assert [status for (status,) in ttasks.sql("SELECT status FROM graphs ORDER BY created_at")] == [
        "cancelled",
        "running",
    ]
    assert second[-8:] in ttasks("resume", "--list").stdout


# --- retry ------------------------------------------------------------------------------------------------------------


def failed(ttasks: Command) -> str:
    ttasks.write("failing.yaml", FAILING)
    done = ttasks("run", "failing.yaml")
    assert done.returncode == 1
    graph_id = ttasks.graph_id()
    assert last_lines(done.stdout)[0] == f"Carry on: ttasks retry {graph_id[-8:]}"
    return graph_id


def test_after_a_failure_retry_carries_on_once_the_cause_is_gone(ttasks: Command) -> None:
    graph_id = failed(ttasks)
    go(ttasks, "fixed")
    done = ttasks("retry", graph_id[-8:])
    assert (done.returncode, done.stderr) == (0, "")
    assert "failing: carrying on with graph " + graph_id[-8:] in done.stdout
    assert ttasks.log() == ["build", "check", "clean", "check", "ship", "clean"]
    assert set(ttasks.statuses().values()) == {"succeeded"}


def test_retry_with_a_task_repeats_that_and_what_depends_on_it(ttasks: Command) -> None:
    failed(ttasks)
    go(ttasks, "fixed")
    ttasks("retry")
    (ttasks.folder / "log").unlink()
    done = ttasks("retry", "--task", "check")
    assert done.returncode == 0
    assert ttasks.log() == ["check", "ship", "clean"]


def test_retry_of_a_task_that_is_not_there_names_those_that_are(ttasks: Command) -> None:
    failed(ttasks)
    before = ttasks.runners()
    done = ttasks("retry", "--task", "chekc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'chekc'" in done.stderr and "build, check, ship, clean" in done.stderr
    assert ttasks.runners() == before


def test_retry_of_an_interrupted_graph_is_refused_with_what_to_do_instead(ttasks: Command) -> None:
    killed(ttasks)
    before = ttasks.runners()
    done = ttasks("retry")
    assert (done.returncode, done.stdout) == (1, "")
    part = ttasks.graph_id()[-8:]
    assert f"ttasks resume {part})" in done.stderr and f"ttasks resume {part} --finally-only" in done.stderr
    assert ttasks.runners() == before


def test_retry_of_a_graph_that_is_ok_says_there_is_nothing_to_retry(ttasks: Command) -> None:
    failed(ttasks)
    go(ttasks, "fixed")
    ttasks("retry")
    before = ttasks.files()
    done = ttasks("retry")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nothing to retry: every task succeeded.")
    assert ttasks.files() == before


# --- run FILE ---------------------------------------------------------------------------------------------------------


def test_run_after_an_interrupted_run_of_the_file_says_so_and_starts_afresh(ttasks: Command) -> None:
    killed(ttasks)
    first = ttasks.graph_id()
    go(ttasks)
    done = ttasks("run", "release.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()[0]
    assert "was interrupted" in said and said.endswith(f"ttasks resume {first[-8:]}")
    assert ttasks.log() == ["build", "upload", "build", "upload", "announce", "clean"]
    assert ttasks.graph_id() != first


def test_run_resume_goes_on_with_the_interrupted_run_of_the_file(ttasks: Command) -> None:
    killed(ttasks)
    go(ttasks)
    done = ttasks("run", "--resume", "release.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "was changed since" not in done.stdout
    assert ttasks.log() == ["build", "upload", "upload", "announce", "clean"]
    assert len(ttasks.sql("SELECT id FROM graphs")) == 1


def test_run_resume_says_that_the_file_was_changed_since_and_does_what_was_recorded(ttasks: Command) -> None:
    killed(ttasks)
    ttasks.write("release.yaml", RELEASE.replace("echo announce", "echo changed"))
    go(ttasks)
    done = ttasks("run", "--resume", "release.yaml")
    assert done.returncode == 0
    assert done.stdout.startswith("release.yaml was changed since")
    assert ttasks.log() == ["build", "upload", "upload", "announce", "clean"]


def test_retry_says_that_the_file_was_changed_since_and_does_what_was_recorded(ttasks: Command) -> None:
    started(ttasks).end(signal.SIGINT)
    ttasks.write("release.yaml", RELEASE.replace("echo announce", "echo changed"))
    go(ttasks)
    done = ttasks("retry")
    assert done.returncode == 0
    changed = "release.yaml was changed since: what goes on is what was recorded of it then; as it is now: ttasks run"
    assert done.stdout.startswith(f"{changed} release.yaml\n")
    assert ttasks.log()[-2:] == ["announce", "clean"]
    (ttasks.folder / "release.yaml").unlink()
    assert "release.yaml can't be read any more: " in ttasks("retry", "--task", "clean").stdout


def test_run_resume_says_when_nothing_was_interrupted(ttasks: Command) -> None:
    go(ttasks)
    ttasks.write("release.yaml", RELEASE)
    ttasks("run", "release.yaml")
    done = ttasks("run", "--resume", "release.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing to resume: the latest run of release.yaml was not interrupted\n"
    assert len(ttasks.sql("SELECT run FROM runs")) == 1


def test_run_resume_of_a_file_that_runs_is_refused(ttasks: Command) -> None:
    started(ttasks)
    before = ttasks.runners()
    done = ttasks("run", "--resume", "release.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is running already" in done.stderr
    assert ttasks.runners() == before


def test_run_resume_of_a_file_that_was_never_run_says_so(ttasks: Command) -> None:
    go(ttasks)
    ttasks.write("release.yaml", RELEASE)
    ttasks("run", "release.yaml")
    ttasks.write("other.yaml", RELEASE)
    done = ttasks("run", "--resume", "other.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing to resume: other.yaml was never run into this ledger\n"


@pytest.mark.parametrize(
    "words", [["resume"], ["resume", "--list"], ["retry"], ["resolve", "x", "--failed"]], ids=" ".join
)
def test_without_a_ledger_the_command_says_so_and_makes_none(ttasks: Command, words: list[str]) -> None:
    done = ttasks(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert ".ttasks/ledger.db" in done.stderr
    assert not ttasks.ledger.parent.exists()


# --- what a person decides --------------------------------------------------------------------------------------------


def asking(ttasks: Command, on_interrupted: str = "ask") -> str:
    """Kill a run while a task with this `on_interrupted` hangs, resume it; return the task's id."""
    killed(ttasks, text=RELEASE.replace("upload: {", f"upload: {{on_interrupted: {on_interrupted}, "))
    return ttasks.task_id("upload")


def test_a_task_with_on_interrupted_fail_fails_and_what_depends_on_it_is_blocked(ttasks: Command) -> None:
    asking(ttasks, "fail")
    done = ttasks("resume")
    assert done.returncode == 1
    assert ttasks.statuses() == {
        "build": "succeeded",
        "upload": "failed",
        "announce": "blocked",
        "clean": "succeeded",
    }
    assert "upload: failed: attempt 1 was interrupted, and on_interrupted is 'fail'" in done.stdout
    go(ttasks)
    assert ttasks("retry").returncode == 0
    assert ttasks.log() == ["build", "upload", "clean", "upload", "announce", "clean"]


def test_a_task_with_on_interrupted_ask_waits_for_a_person_and_the_rest_goes_on(ttasks: Command) -> None:
    task_id = asking(ttasks)
    listed = ttasks("resume", "--list").stdout
    assert f"waits for a person: upload: ttasks resolve {task_id[-8:]} --rerun  (or --succeeded, or --failed)" in listed
    done = ttasks("resume")
    assert done.returncode == 1
    assert f"upload waits for a person: ttasks resolve {task_id[-8:]} --rerun" in done.stdout
    assert ttasks.statuses() == {**INTERRUPTED, "announce": "blocked", "clean": "succeeded"}
    assert ttasks.log() == ["build", "upload", "clean"]
    assert ttasks.left() == []


@pytest.mark.parametrize(
    ("answer", "repeats"), [("--succeeded", []), ("--failed", ["upload"]), ("--rerun", ["upload"])]
)
def test_what_a_person_decides_is_recorded_with_who_and_why_and_retry_carries_on(
    ttasks: Command, answer: str, repeats: list[str]
) -> None:
    task_id = asking(ttasks)
    ttasks("resume")
    decided = ttasks("resolve", task_id[-8:], answer, "--note", "I looked")
    assert (decided.returncode, decided.stderr) == (0, "")
    assert decided.stdout.startswith("recorded: task 'upload' ")
    assert f"ttasks retry {ttasks.graph_id()[-8:]}" in decided.stdout
    ((data,),) = ttasks.sql("SELECT data FROM events WHERE type = 'TaskResolved'")
    fact = json.loads(data)
    who = ttasks.sql("SELECT user || '@' || host FROM runners LIMIT 1")[0][0]
    assert fact["note"] == "I looked" and who.split("@")[0] in json.dumps(fact)
    shown = ttasks("show", task_id).stdout
    assert re.search(
        rf"^resolved +{answer.removeprefix('--')}, by {re.escape(who)} at .*: I looked$", shown, re.MULTILINE
    )
    go(ttasks)
    done = ttasks("retry")
    assert (done.returncode, done.stderr) == (0, "")
    assert ttasks.log() == ["build", "upload", "clean", *repeats, "announce", "clean"]


def test_a_retry_does_not_repeat_a_task_that_waits_for_a_person_unless_it_is_named(ttasks: Command) -> None:
    task_id = asking(ttasks)
    go(ttasks)
    closed = ttasks("resume")
    assert "ttasks retry" not in closed.stdout
    before = ttasks.sql("SELECT count(*) FROM events")
    refused = ttasks("retry")
    assert (refused.returncode, refused.stdout) == (1, "")
    resolve = f"ttasks resolve {task_id[-8:]} --rerun  (or --succeeded, or --failed)"
    repeat = f"retry {ttasks.graph_id()[-8:]} --task upload"
    assert f"{resolve}; or do it again: ttasks {repeat}" in refused.stderr
    assert ttasks.sql("SELECT count(*) FROM events") == before
    assert ttasks(*repeat.split()).returncode == 0
    assert ttasks.log() == ["build", "upload", "clean", "upload", "announce", "clean"]


def test_what_is_resolved_before_it_is_resumed_goes_on_in_the_same_run(ttasks: Command) -> None:
    task_id = asking(ttasks)
    decided = ttasks("resolve", task_id, "--succeeded")
    assert decided.returncode == 0
    assert f"ttasks resume {ttasks.graph_id()[-8:]}" in decided.stdout
    assert ttasks.left() == [], "nothing goes on uploading what counts as uploaded"
    assert ttasks("resume").returncode == 0
    assert ttasks.log() == ["build", "upload", "announce", "clean"]


def test_resolve_takes_one_answer(ttasks: Command) -> None:
    task_id = asking(ttasks)
    refused = ttasks("resolve", task_id, "--failed", "--succeeded")
    assert refused.returncode == 2
    assert "--succeeded, --failed or --rerun, not several of them" in refused.stderr
    assert ttasks.sql("SELECT count(*) FROM events WHERE type = 'TaskResolved'") == [(0,)]


def test_resolving_the_last_open_task_says_that_nothing_is_left_to_do(ttasks: Command) -> None:
    ttasks.write("release.yaml", "tasks:\n  upload: {bash: 'kill -9 $PPID; sleep 60', on_interrupted: ask}\n")
    ttasks("run", "release.yaml")
    ttasks("resume")
    ((task_id,),) = ttasks.sql("SELECT id FROM tasks")
    decided = ttasks("resolve", str(task_id), "--succeeded")
    assert decided.stdout.endswith("Every task of its graph has succeeded: nothing is left to do\n")


def test_resolve_without_an_answer_is_refused(ttasks: Command) -> None:
    task_id = asking(ttasks)
    before = ttasks.runners()
    done = ttasks("resolve", task_id)
    assert done.returncode == 2
    assert "say what it counts as: --succeeded, --failed or --rerun" in done.stderr
    assert ttasks.runners() == before


@pytest.mark.parametrize("name", ["build", "upload"])
def test_what_ended_and_what_runs_can_not_be_resolved(ttasks: Command, name: str) -> None:
    started(ttasks)
    before = ttasks.runners()
    done = ttasks("resolve", ttasks.task_id(name), "--failed")
    assert (done.returncode, done.stdout) == (1, "")
    assert name in done.stderr
    assert ttasks.runners() == before


def test_after_three_kills_in_a_row_the_task_waits_for_a_person(ttasks: Command) -> None:
    killed(ttasks)
    killed(ttasks, "resume")
    killed(ttasks, "resume")
    task_id = ttasks.task_id("upload")
    assert "waits for a person: upload" in ttasks("resume", "--list").stdout
    go(ttasks)
    done = ttasks("resume")
    assert done.returncode == 1
    assert ttasks.log() == ["build", "upload", "upload", "upload", "clean"]
    assert f"ttasks resolve {task_id[-8:]}" in done.stdout
    ttasks("resolve", task_id, "--rerun")
    assert ttasks("retry").returncode == 0
    assert ttasks.log()[5:] == ["upload", "announce", "clean"]


# --- what can't be restored -------------------------------------------------------------------------------------------


SECRET = RELEASE.replace("upload: {", "upload: {env: {API_TOKEN: hush-hush}, ").replace(
    "echo upload >> log", "echo upload-$API_TOKEN >> log"
)


def change(ttasks: Command) -> None:
    """Change the workflow file, so that it is not what was run."""
    with (ttasks.folder / "release.yaml").open("a") as file:
        file.write("# changed\n")


def test_a_secret_has_to_be_given_again_before_anything_starts(ttasks: Command) -> None:
    killed(ttasks, text=SECRET)
    change(ttasks)
    before, left = ttasks.runners(), ttasks.left()
    go(ttasks)
    done = ttasks("resume")
    assert (done.returncode, done.stdout) == (2, "")
    assert "release.yaml is not what it was then, so what the ledger withholds can't be taken from it" in done.stderr
    assert "task 'upload' needs its env['API_TOKEN']" in done.stderr and "--env API_TOKEN" in done.stderr
    assert ttasks.runners() == before
    assert [process.pid for process in ttasks.left()] == [process.pid for process in left]
    assert ttasks.log() == ["build", "upload-hush-hush"]


def test_where_one_of_several_can_not_go_on_it_is_said_how_the_others_do(ttasks: Command) -> None:
    killed(ttasks, text=SECRET)
    first = ttasks.graph_id()
    killed(ttasks)
    second = ttasks.sql(f"SELECT id FROM graphs WHERE id <> '{first}'")[0][0]
    go(ttasks)
    done = ttasks("resume")
    assert (done.returncode, done.stdout) == (2, "")
    assert "one of 2 can't go on as it was, so none was started. The others: ttasks resume" in done.stderr
    assert second[-8:] in done.stderr
    assert ttasks("resume", second[-8:]).returncode == 0


def test_with_its_secret_given_again_a_run_is_resumed(ttasks: Command) -> None:
    killed(ttasks, text=SECRET)
    go(ttasks)
    done = ttasks("resume", "--env", "API_TOKEN", API_TOKEN="hush-hush")
    assert (done.returncode, done.stderr) == (0, "")
    assert ttasks.log() == ["build", "upload-hush-hush", "upload-hush-hush", "announce", "clean"]
    assert not any(b"hush-hush" in content for content in ttasks.files().values())


def test_a_secret_that_is_not_in_the_environment_is_refused(ttasks: Command) -> None:
    killed(ttasks, text=SECRET)
    before = ttasks.runners()
    done = ttasks("resume", "--env", "API_TOKEN")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--env API_TOKEN: there is no such variable in the environment. Nothing was run or written" in done.stderr
    assert ttasks.runners() == before


def test_retry_needs_the_secrets_again_too(ttasks: Command) -> None:
    run = started(ttasks, text=SECRET)
    change(ttasks)
    _, printed = run.end(signal.SIGINT)
    assert re.search(r"^Carry on: ttasks retry \w{8} --env API_TOKEN$", printed, re.MULTILINE)
    go(ttasks)
    refused = ttasks("retry")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--env API_TOKEN" in refused.stderr
    assert ttasks("retry", "--env", "API_TOKEN", API_TOKEN="hush-hush").returncode == 0


def test_run_resume_takes_secrets_too(ttasks: Command) -> None:
    killed(ttasks, text=SECRET)
    change(ttasks)
    go(ttasks)
    assert ttasks("run", "--resume", "release.yaml").returncode == 2
    done = ttasks("run", "--resume", "release.yaml", "--env", "API_TOKEN", API_TOKEN="hush-hush")
    assert done.returncode == 0


OWN_HANDLER = """
import time
from pathlib import Path
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType

def note(context):
    Path("started").touch()
    time.sleep(100)

with SQLiteStore(".ttasks/ledger.db") as store:
    executor = TaskExecutor(store)
    executor.register(TaskType.BASH, note)
    task = Task.bash("echo shell >> log", title="note")
    GRAPH
"""


@pytest.mark.parametrize(
    "start", ["executor.execute(task)", "graph = TaskGraph(); graph.add(task); graph.run(executor)"]
)
def test_a_payload_for_a_custom_handler_reaches_no_shell_unless_somebody_insists(ttasks: Command, start: str) -> None:
    run = ttasks.start_process([sys.executable, "-c", OWN_HANDLER.replace("GRAPH", start)])
    ttasks.await_file("started")
    run.kill()
    before = ttasks.runners()
    done = ttasks("resume")
    assert (done.returncode, done.stdout) == (2, "")
    assert "__main__.note" in done.stderr and "--force-handlers" in done.stderr
    assert (ttasks.log(), ttasks.runners()) == ([], before)
    forced = ttasks("resume", "--force-handlers")
    assert (forced.returncode, forced.stderr) == (0, "")
    assert ttasks.log() == ["shell"]


# --- only what is owed ------------------------------------------------------------------------------------------------


def test_finally_only_runs_what_is_owed_and_closes_the_run_as_cancelled(ttasks: Command) -> None:
    killed(ttasks)
    graph_id = ttasks.graph_id()
    done = ttasks("resume", graph_id[-8:], "--finally-only")
    assert done.returncode == 1
    assert ttasks.log() == ["build", "upload", "clean"]
    assert ttasks.left() == []
    assert ttasks.statuses() == {**INTERRUPTED, "upload": "cancelled", "clean": "succeeded"}
    assert ttasks.sql("SELECT status, why FROM runs") == [("cancelled", "resume --finally-only")]
    assert f"Carry on: ttasks retry {graph_id[-8:]}\n" in done.stdout
    go(ttasks)
    assert ttasks("retry").returncode == 0


def test_finally_only_is_refused_for_a_task(ttasks: Command) -> None:
    task_id = alone_killed(ttasks)
    before = ttasks.runners()
    done = ttasks("resume", task_id, "--finally-only")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--finally-only is for graphs" in done.stderr
    assert ttasks.runners() == before


# --- where it runs ----------------------------------------------------------------------------------------------------


def test_a_run_that_is_resumed_from_another_folder_runs_in_its_own(ttasks: Command, tmp_path: Path) -> None:
    killed(ttasks)
    go(ttasks)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = ttasks("resume", "--ledger", str(ttasks.ledger), cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert ttasks.log() == ["build", "upload", "upload", "announce", "clean"]
    assert list(elsewhere.iterdir()) == []


def test_a_retry_from_another_folder_runs_in_that_of_the_run_also_when_it_is_repeated_itself(
    ttasks: Command, tmp_path: Path
) -> None:
    ttasks.write("w.yaml", "tasks:\n  clean: {bash: 'pwd >> log; rm -f old; test -e fixed'}\n")
    assert ttasks("run", "w.yaml").returncode == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "old").touch()
    for attempt in range(2):
        done = ttasks("retry", "--ledger", str(ttasks.ledger), cwd=elsewhere)
        assert done.returncode == 1
        assert f"in {ttasks.folder}, where that run was started\n" in done.stdout
        assert ttasks.log() == [str(ttasks.folder)] * (attempt + 2)
    assert [file.name for file in elsewhere.iterdir()] == ["old"]


def test_a_retry_is_refused_where_the_folder_of_the_run_is_gone(ttasks: Command, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    path = ttasks.write("w.yaml", "tasks: {a: {bash: exit 1}}")
    assert ttasks("run", str(path), "--ledger", str(ttasks.ledger), cwd=folder).returncode == 1
    folder.rmdir()
    before = ttasks.runners()
    refused = ttasks("retry")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"the folder {folder}, in which the run was started, is not there" in refused.stderr
    assert ttasks.runners() == before


def test_hints_name_the_ledger_that_was_given(ttasks: Command, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    ttasks.ledger = elsewhere / "my ledger.db"
    ttasks.write("release.yaml", RELEASE)
    option = f" --ledger '{ttasks.ledger}'"
    _, printed = started(ttasks, "run", "release.yaml", "--ledger", str(ttasks.ledger)).end(signal.SIGTERM)
    part = ttasks.graph_id()[-8:]
    assert f"Go on with it: ttasks resume {part}{option}\n" in printed
    listed = ttasks("resume", "--list", "--ledger", str(ttasks.ledger)).stdout
    assert f"go on with it: ttasks resume {part}{option}\n" in listed
    refused = ttasks("retry", "--ledger", str(ttasks.ledger)).stderr
    assert f"ttasks resume {part}{option}" in refused and f"ttasks resume {part} --finally-only{option}" in refused


def test_a_folder_that_is_gone_is_refused_with_its_name(ttasks: Command, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    path = ttasks.write("release.yaml", RELEASE.replace("touch started", f"touch {tmp_path}/started"))
    run = ttasks.start("run", str(path), "--ledger", str(ttasks.ledger), cwd=folder)
    ttasks.await_file("started")
    run.kill()
    folder.rename(tmp_path / "moved")
    before = ttasks.runners()
    done = ttasks("resume")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the folder {folder}, in which the run was started, is not there" in done.stderr
    assert "make it again" in done.stderr
    assert ttasks.runners() == before


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_dead_run_that_is_cancelled_owes_only_its_finally_tasks(ttasks: Command) -> None:
    killed(ttasks)
    part = ttasks.graph_id()[-8:]
    done = ttasks("cancel", part)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ttasks resume {part} runs its finally tasks" in done.stdout
    ttasks("resume")
    assert ttasks.log() == ["build", "upload", "clean"]
    assert ttasks.statuses() == {**INTERRUPTED, "upload": "cancelled", "clean": "succeeded"}
    assert ttasks.left() == []


def test_a_dead_task_that_is_cancelled_is_cancelled_at_once(ttasks: Command) -> None:
    killed(ttasks)
    done = ttasks("cancel", ttasks.task_id("upload"))
    assert (done.returncode, done.stdout) == (0, "cancelled: task 'upload'\n")
    assert ttasks.statuses()["upload"] == "cancelled"
    assert ttasks.left() == [], "what is cancelled does not go on"
    facts = [kind for (kind,) in ttasks.sql("SELECT type FROM events ORDER BY position DESC LIMIT 2")]
    assert facts == ["TaskCancelled", "TaskInterrupted"]
    assert ttasks("resume").returncode == 1
    assert ttasks.log() == ["build", "upload", "clean"]


@pytest.mark.parametrize("what", ["task", "graph"])
def test_a_live_run_in_another_process_obeys_a_cancel_within_a_second(ttasks: Command, what: str) -> None:
    run = started(ttasks)
    done = ttasks("cancel", ttasks.task_id("upload") if what == "task" else ttasks.graph_id())
    asked = time.monotonic()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("asked for: ")
    run.until("cancelled after")
    assert time.monotonic() - asked < 1
    assert run.end()[0] == 1
    assert ttasks.left() == []
    assert ttasks.statuses()["upload"] == "cancelled"
    assert ttasks.statuses()["clean"] == "succeeded"
