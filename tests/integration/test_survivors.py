"""What a dead runner's attempts left running is found and ended, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from processes import until
from ttasks import SurvivorError
from ttasks.log import survivors
from ttasks.log.processes import Process, variables
from ttasks.log.runner import process_start
from ttasks.log.survivors import MARK, RUNNER, Dead, Leader, end_survivors, mark

LEDGER = f"ledger-of-{os.getpid()}"
OF_ATTEMPT = mark(LEDGER, 7)


class Script:
    """A bash script in a session of its own that carries the mark of an attempt, and has said a line."""

    def __init__(self, script: str, carries: str | None = OF_ATTEMPT) -> None:
        env = {**os.environ, MARK: carries} if carries is not None else None
        self.process = subprocess.Popen(
            ["bash", "-c", script], env=env, start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()

    @property
    def leader(self) -> Leader:
        return Leader(self.process.pid, process_start(self.process.pid))

    def end(self) -> None:
        for pid in [self.process.pid, *(int(word) for word in self.said.split() if word.isdigit())]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()


@pytest.fixture
def scripts() -> Iterator[Any]:
    made: list[Script] = []

    def make(*arguments: Any, **named: Any) -> Script:
        made.append(Script(*arguments, **named))
        return made[-1]

    yield make
    for script in made:
        script.end()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_script_is_ended_by_the_mark_that_it_carries(scripts: Any) -> None:
    script = scripts("sleep 1000 & echo $!; wait")
    ended = end_survivors({OF_ATTEMPT: Dead("r")})
    assert ended[OF_ATTEMPT].pids == {script.process.pid, int(script.said)}
    assert ended[OF_ATTEMPT].signal == "SIGTERM"
    assert not lives(int(script.said))


def test_what_left_the_group_is_found_by_the_mark(scripts: Any) -> None:
    script = scripts("setsid bash -c 'echo $$; sleep 1000'; true")
    end_survivors({OF_ATTEMPT: Dead("r", script.leader)})
    assert not lives(int(script.said))


def test_what_lost_the_mark_is_found_by_the_group_of_its_leader(scripts: Any) -> None:
    script = scripts("env -i sleep 1000 & echo $!; wait")
    end_survivors({OF_ATTEMPT: Dead("r", script.leader)})
    assert not lives(int(script.said))


def test_a_script_that_lost_the_mark_itself_is_found_by_its_pid(scripts: Any) -> None:
    script = scripts("echo ready; sleep 1000", carries=None)
    assert end_survivors({OF_ATTEMPT: Dead("r")}) == {}
    assert script.process.pid in end_survivors({OF_ATTEMPT: Dead("r", script.leader)})[OF_ATTEMPT].pids


def test_a_group_is_the_attempts_as_long_as_a_process_with_its_mark_is_in_it(scripts: Any) -> None:
    script = scripts("sleep 1000 & env -i sleep 1000 & echo $!; exec true")
    leader = script.leader
    script.process.wait()
    end_survivors({OF_ATTEMPT: Dead("r", leader)})
    assert not lives(int(script.said))


def test_what_lost_the_mark_is_found_by_the_session_though_leader_and_runner_are_gone(scripts: Any) -> None:
    script = scripts("env -i sleep 1000 & echo $!; exec true")
    leader = script.leader
    script.process.wait()
    assert end_survivors({OF_ATTEMPT: Dead("r", leader)})[OF_ATTEMPT].pids == {int(script.said)}
    assert not lives(int(script.said))


@pytest.mark.parametrize("carries", [None, mark(LEDGER, 8)], ids=["started before it", "of another attempt"])
def test_a_session_of_others_is_left_alone_though_the_pid_was_the_leaders(scripts: Any, carries: str | None) -> None:
    script = scripts(("env -i " if carries is None else "") + "sleep 1000 & echo $!; exec true", carries=carries)
    leader = script.leader
    script.process.wait()
    if carries is None:  # as after the pid was given to another: the session is older than the leader that is known
        leader = Leader(leader.pid, "ticks:999999999999")
    assert end_survivors({OF_ATTEMPT: Dead("r", leader)}) == {}
    assert lives(int(script.said))


def test_what_it_started_is_found_though_it_lost_the_mark_and_left_the_session(scripts: Any) -> None:
    script = scripts("setsid env -i bash -c 'echo $$; exec sleep 1000' & wait")
    end_survivors({OF_ATTEMPT: Dead("r")})
    assert not lives(int(script.said))


def test_an_attempt_inside_is_ended_with_the_outer_one_and_not_the_other_way_round(scripts: Any) -> None:
    outer = scripts("echo $$; exec sleep 1000")
    inner = scripts("echo $$; exec sleep 1000", carries=f"{OF_ATTEMPT}/inner:1")
    assert end_survivors({"inner:1": Dead("r")})["inner:1"].pids == {inner.process.pid}
    assert lives(outer.process.pid)
    inner = scripts("echo $$; exec sleep 1000", carries=f"{OF_ATTEMPT}/inner:2")
    assert end_survivors({OF_ATTEMPT: Dead("r")})[OF_ATTEMPT].pids == {outer.process.pid, inner.process.pid}


def test_only_a_runner_inside_gets_a_second_sigterm(scripts: Any) -> None:
    counting = "trap 'echo TERM' TERM; echo ready; while :; do sleep 0.05; done"
    alone = scripts(counting)
    inner = f"{MARK}={mark(LEDGER, 9)}/inner:1 setsid sleep 1000 < /dev/null > /dev/null 2>&1 &"
    runner = scripts(f"{inner} {counting.replace('ready', '$!')}", carries=mark(LEDGER, 9))
    nested = f"{mark(LEDGER, 9)}/inner:1"
    until(lambda: variables(int(runner.said), MARK, RUNNER)[0] == nested)  # it was forked before, and is itself now
    end_survivors({OF_ATTEMPT: Dead("r", grace_s=1.5), mark(LEDGER, 9): Dead("r", grace_s=1.5)})
    told = [script.process.stdout.read().split() for script in (alone, runner)]
    assert told == [["TERM"], ["TERM", "TERM"]]


def test_a_second_sigterm_does_not_reach_what_is_in_the_group_of_a_runner_inside(scripts: Any) -> None:
    nested = f"{OF_ATTEMPT}/inner:1"
    script = scripts(
        f"{MARK}={nested} setsid sleep 1000 < /dev/null > /dev/null 2>&1 & nested=$!; trap 'echo runner' TERM; "
        "(trap 'echo other' TERM; echo $nested; while :; do sleep 0.05; done) & while :; do sleep 0.05; done"
    )
    until(lambda: variables(int(script.said), MARK, RUNNER)[0] == nested)
    end_survivors({OF_ATTEMPT: Dead("r", script.leader, grace_s=1.5)})
    assert sorted(script.process.stdout.read().split()) == ["other", "runner", "runner"]


def test_each_of_several_attempts_has_its_own_grace(scripts: Any) -> None:
    deaf = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    scripts(deaf)
    obeys_late = "trap 'sleep 0.6; exit' TERM; echo $$; while :; do sleep 0.05; done"
    scripts(obeys_late, carries=mark(LEDGER, 9))
    ended = end_survivors({OF_ATTEMPT: Dead("r", grace_s=0.1), mark(LEDGER, 9): Dead("r", grace_s=1000)})
    assert {name: found.signal for name, found in ended.items()} == {OF_ATTEMPT: "SIGKILL", mark(LEDGER, 9): "SIGTERM"}


def test_once_it_is_hurried_nothing_has_a_grace_any_more(scripts: Any) -> None:
    scripts("trap '' TERM; echo $$; while :; do sleep 0.1; done")
    hurries = iter([False, False, False])
    ended = end_survivors({OF_ATTEMPT: Dead("r", grace_s=1000)}, is_hurried=lambda: next(hurries, True))
    assert ended[OF_ATTEMPT].signal == "SIGKILL"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_group_that_may_not_be_signalled_is_no_error(number: signal.Signals, monkeypatch: Any) -> None:
    def refuse(group: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    end = survivors._End({OF_ATTEMPT: Dead("r", Leader(2**22 + 1, "ticks:1"))}, lambda: False)
    end._send(OF_ATTEMPT, {Process(2**22 + 2, "ticks:1", 1, 2**22 + 1, 1)}, number)


def test_what_does_not_heed_sigterm_is_killed(scripts: Any) -> None:
    script = scripts("trap '' TERM; echo $$; while true; do sleep 0.1; done")
    assert end_survivors({OF_ATTEMPT: Dead("r", grace_s=0.1)})[OF_ATTEMPT].signal == "SIGKILL"
    assert not lives(script.process.pid)


def test_a_process_that_got_the_leaders_pid_is_left_alone(scripts: Any) -> None:
    script = scripts("echo $$; sleep 1000", carries=None)
    assert end_survivors({OF_ATTEMPT: Dead("r", Leader(script.process.pid, "ticks:1"))}) == {}
    assert lives(script.process.pid)


def test_other_attempts_are_left_alone(scripts: Any) -> None:
    other = scripts("echo $$; sleep 1000", carries=mark(LEDGER, 8))
    another = scripts("echo $$; sleep 1000", carries=mark("another-ledger", 7))
    assert end_survivors({OF_ATTEMPT: Dead("r")}) == {}
    assert lives(other.process.pid)
    assert lives(another.process.pid)


def test_what_another_runner_started_from_a_copy_of_the_ledger_is_left_alone(
    scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNNER, "another")
    of_copy = scripts("echo $$; exec sleep 1000")
    assert end_survivors({OF_ATTEMPT: Dead("r")}) == {}
    assert lives(of_copy.process.pid)
    assert end_survivors({OF_ATTEMPT: Dead("another")})[OF_ATTEMPT].pids == {of_copy.process.pid}


def test_each_process_is_told_with_its_attempt(scripts: Any) -> None:
    one, two = scripts("echo $$; exec sleep 1000"), scripts("echo $$; exec sleep 1000", carries=mark(LEDGER, 9))
    ended = end_survivors({OF_ATTEMPT: Dead("r"), mark(LEDGER, 9): Dead("r")})
    assert {name: found.pids for name, found in ended.items()} == {
        OF_ATTEMPT: {one.process.pid},
        mark(LEDGER, 9): {two.process.pid},
    }


def test_who_resumes_from_inside_the_attempt_does_not_end_itself() -> None:
    code = f"from ttasks.log.survivors import *; print(end_survivors({{{OF_ATTEMPT!r}: Dead('r')}}))"
    inner = [sys.executable, "-c", code]
    done = subprocess.run(
        ["bash", "-c", '"$@"; echo went on', "bash", *inner],
        env={**os.environ, MARK: OF_ATTEMPT},
        start_new_session=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "{}\nwent on\n", done.stderr


def test_who_resumes_from_inside_the_attempt_without_its_mark_does_not_end_its_parents() -> None:
    code = (
        "import sys; from ttasks.log.runner import process_start; from ttasks.log.survivors import *; "
        "pid = int(sys.argv[1]); "
        f"print(end_survivors({{{OF_ATTEMPT!r}: Dead('r', Leader(pid, process_start(pid)))}})[{OF_ATTEMPT!r}].pids)"
    )
    # As by sudo, which gives a command another environment and session.
    script = 'sleep 1000 & echo $!; env -i setsid -w "$@" $$; echo went on'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", code],
        env={**os.environ, MARK: OF_ATTEMPT},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, *said = done.stdout.splitlines()
    assert said == [f"{{{pid}}}", "went on"]


def test_what_can_not_be_ended_is_named(scripts: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(survivors, "KILL_WAIT_S", 0.05)
    monkeypatch.setattr(survivors, "_send", lambda process, number: None)  # as where it is another user's
    script = scripts("echo $$; exec sleep 1000")
    with pytest.raises(SurvivorError, match=f"process {script.process.pid}") as refusal:
        end_survivors({OF_ATTEMPT: Dead("r", grace_s=0.05)})
    assert refusal.value.pids == (script.process.pid,)


def test_signals_that_come_too_late_or_are_not_allowed_are_no_error(monkeypatch: Any) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    this = Process(os.getpid(), process_start(os.getpid()) or "", os.getppid(), os.getpgid(0), os.getsid(0))
    monkeypatch.setattr(os, "kill", refuse)
    survivors._send(this, signal.SIGTERM)
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("it is another process"))
    survivors._send(replace(this, start="ticks:1"), signal.SIGKILL)


def test_where_nothing_is_asked_for_nothing_is_ended() -> None:
    assert end_survivors({}) == {}


def test_a_look_comes_to_an_end_though_processes_start_all_the_time(scripts: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(survivors, "LISTS_MAX", 1)
    script = scripts("echo $$; exec sleep 1000")
    assert end_survivors({OF_ATTEMPT: Dead("r")})[OF_ATTEMPT].pids == {script.process.pid}
