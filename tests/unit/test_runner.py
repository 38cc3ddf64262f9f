"""Who a runner is: what the operating system and git say of this process, and what its stream may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from strategies import created
from ttasks.errors import DamagedLedgerError, UnknownEventError
from ttasks.events.codec import to_json
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact, RunnerDescribed
from ttasks.log import checkout, runner
from ttasks.log.event_log import EventLog
from ttasks.log.reading import Readers
from ttasks.log.replay import Past
from ttasks.log.transaction import Batch
from ttasks.state.runner import RunnerState, apply

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def ended_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What macOS is like, which has no /proc: the files in it are not found."""

    def refuse(path: Path, *_: object) -> bytes:
        raise FileNotFoundError(path)

    runner.boot_id.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        patch.setattr(Path, "read_text", refuse)
        patch.setattr(sys, "platform", "darwin")
        yield
    runner.boot_id.cache_clear()


@pytest.fixture
def deleted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


@pytest.mark.usefixtures("without_proc")
def test_without_proc_the_boot_is_named_by_its_time() -> None:
    assert runner.boot_id() == f"booted:{psutil.boot_time():.0f}"


def test_without_proc_a_process_start_is_its_time_and_none_once_it_is_gone(
    ended_pid: int, request: pytest.FixtureRequest
) -> None:
    # psutil itself reads /proc here, by open(), which the fixture leaves alone.
    request.getfixturevalue("without_proc")
    assert runner.process_start(os.getpid()) == f"epoch:{psutil.Process().create_time():.6f}"
    assert runner.process_start(ended_pid) is None


def test_a_process_that_is_gone_has_no_start(ended_pid: int) -> None:
    assert runner.process_start(ended_pid) is None


def test_a_process_that_goes_while_it_is_looked_at_has_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)

    def read_late(path: Path) -> bytes:
        with path.open("rb") as file:
            child.communicate()
            return file.read()  # what the kernel says of it by now: no such process

    monkeypatch.setattr(Path, "read_bytes", read_late)
    assert runner.process_start(child.pid) is None


@pytest.mark.usefixtures("deleted_folder")
def test_who_runs_in_a_deleted_folder_says_so_and_is_in_no_checkout() -> None:
    assert runner.describe_runner().cwd == "(deleted)"
    assert checkout.git_root() is None


def test_where_there_is_no_git_only_the_root_of_the_checkout_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout.describe_git(tmp_path) == RunnerDescribed(str(tmp_path))


def registered() -> RunnerState:
    return apply(None, runner.describe_runner(), runner_id="r", position=2, recorded_at=NOW)


def test_an_event_from_the_future_that_may_be_passed_over_leaves_a_runner_as_it_was() -> None:
    state = registered()
    fact = OpaqueEvent("RunnerMoved", 1, "{}", is_ignorable=True)
    assert apply(state, fact, runner_id="r", position=3, recorded_at=NOW) == state


def test_an_event_from_the_future_that_must_not_be_passed_over_is_refused() -> None:
    with pytest.raises(UnknownEventError, match="RunnerMoved"):
        apply(registered(), OpaqueEvent("RunnerMoved", 1, "{}"), runner_id="r", position=3, recorded_at=NOW)


def test_a_runner_does_not_begin_with_an_event_from_the_future() -> None:
    with pytest.raises(UnknownEventError, match="RunnerMoved"):
        apply(None, OpaqueEvent("RunnerMoved", 1, "{}", is_ignorable=True), runner_id="r", position=2, recorded_at=NOW)


@pytest.mark.parametrize("fact", [created(), runner.describe_runner()], ids=["of a task", "a second start"])
def test_a_fact_that_has_no_place_in_a_runners_stream_is_damage(fact: Fact) -> None:
    with pytest.raises(DamagedLedgerError, match="can't follow in the stream of runner r"):
        apply(registered(), fact, runner_id="r", position=3, recorded_at=NOW)


@pytest.fixture
def readers() -> Iterator[Readers]:
    log = EventLog.open(None)
    log.append(Batch("task-t", [created()], 0))
    yield log.readers
    log.close()


def test_the_past_knows_no_runner_behind_its_end(readers: Readers) -> None:
    assert Past(readers, 3).runner(2) == readers.runner(2)
    assert Past(readers, 1).runner(2) is None


def test_a_position_where_no_runner_registered_is_damage_to_who_asks_for_one(readers: Readers) -> None:
    with pytest.raises(DamagedLedgerError, match="event 3 should register a runner, but is a TaskCreated"):
        Past(readers, 3).runner(3)


def test_any_mapping_is_written_as_an_object() -> None:
    assert to_json(MappingProxyType({"a": 1})) == '{"a":1}'
