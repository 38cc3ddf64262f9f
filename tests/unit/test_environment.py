"""The note of a run's environment beside its ledger: what is in it, what it tells, and how it is kept."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from ttasks import EnvironmentChange, InMemoryStore, SQLiteStore, Task, TaskExecutor, TaskGraph
from ttasks.clock import new_id
from ttasks.log.environment import (
    NOTES_MAX,
    SESSION,
    SESSION_BEGINNINGS,
    environment_change,
    forget_environment,
    keep_environment,
    note_path,
)
from ttasks.log.redaction import Redaction

NOTHING = EnvironmentChange((), (), ())


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_what_differs_is_told_by_name(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    monkeypatch.setenv("MODE", "fast")
    monkeypatch.setenv("SAME", "x=y\nz")
    keep_environment(ledger, "g", None)
    assert environment_change(ledger, "g", None) == NOTHING
    monkeypatch.delenv("GONE")
    monkeypatch.setenv("MODE", "slow")
    monkeypatch.setenv("B_NEW", "1")
    monkeypatch.setenv("A_NEW", "1")
    change = environment_change(ledger, "g", None)
    assert change == EnvironmentChange(("GONE",), ("MODE",), ("A_NEW", "B_NEW"))
    assert change and not NOTHING


@pytest.mark.parametrize(
    "name",
    ["_", "SHLVL", "PWD", "OLDPWD", "TERM", "TERM_PROGRAM", "WINDOWID", "SSH_AUTH_SOCK", "SSH_TTY", "TTASKS_LEDGER"],
)
def test_variables_of_a_session_do_not_count(name: str, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    keep_environment(ledger, "g", None)
    monkeypatch.setenv(name, "2")
    assert environment_change(ledger, "g", None) == NOTHING
    monkeypatch.delenv(name)
    assert environment_change(ledger, "g", None) == NOTHING


def test_the_docs_list_all_that_does_not_count() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tutorials" / "resuming.md").read_text("utf-8")
    listed = page.partition("Left out are")[2].partition("\n\n")[0]
    names = re.findall(r"`(\w+)`", listed)
    assert sorted(names) == sorted([*SESSION, *SESSION_BEGINNINGS])


def test_of_what_is_secret_only_that_it_was_set_is_kept(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redaction = Redaction(["NAMED"], ordinary=["OPEN_KEY"])
    for name in ("A_TOKEN", "NAMED", "OPEN_KEY", "PLAIN"):
        monkeypatch.setenv(name, "before")
    keep_environment(ledger, "g", redaction)
    variables = json.loads(note_path(ledger, "g").read_text("utf-8"))["variables"]
    assert (variables["A_TOKEN"], variables["NAMED"]) == ("", "")
    assert len(variables["OPEN_KEY"]) == len(variables["PLAIN"]) == 4
    for name in ("A_TOKEN", "NAMED", "OPEN_KEY"):
        monkeypatch.setenv(name, "after")
    assert environment_change(ledger, "g", redaction) == EnvironmentChange((), ("OPEN_KEY",), ())
    assert environment_change(ledger, "g", None) == NOTHING, "it is a secret by now"
    monkeypatch.delenv("A_TOKEN")
    assert environment_change(ledger, "g", redaction) == EnvironmentChange(("A_TOKEN",), ("OPEN_KEY",), ())


def test_a_note_holds_no_value_and_the_same_value_looks_different_elsewhere(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "production")
    monkeypatch.setenv("B", "production")
    notes = []
    for graph in ("g", "h", "i"):
        keep_environment(ledger, graph, None)
        assert b"production" not in note_path(ledger, graph).read_bytes()
        variables = json.loads(note_path(ledger, graph).read_text("utf-8"))["variables"]
        notes += [variables["A"], variables["B"]]
    assert len(set(notes)) > 1, "six of 65,536: all the same is as good as impossible"


def test_any_bytes_may_be_in_a_variable(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"ODD_\xff", b"\xfe\n")  # type: ignore[misc]
    keep_environment(ledger, "g", None)
    assert environment_change(ledger, "g", None) == NOTHING
    monkeypatch.setitem(os.environb, b"ODD_\xff", b"\xfe\r")  # type: ignore[misc]
    assert environment_change(ledger, "g", None) == EnvironmentChange((), (os.fsdecode(b"ODD_\xff"),), ())


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_only_its_owner_may_read_it(mask: int, ledger: Path) -> None:
    before = os.umask(mask)
    try:
        keep_environment(ledger, "g", None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(note_path(ledger, "g").stat().st_mode) == 0o600


def test_a_link_in_its_place_is_replaced_and_never_followed(ledger: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("{}", "utf-8")
    note_path(ledger, "g").symlink_to(victim)
    assert environment_change(ledger, "g", None) is None
    keep_environment(ledger, "g", None)
    assert victim.read_text("utf-8") == "{}"
    assert environment_change(ledger, "g", None) == NOTHING


def test_a_hard_link_in_its_place_is_not_written_to(ledger: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("{}", "utf-8")
    note_path(ledger, "g").hardlink_to(victim)
    keep_environment(ledger, "g", None)
    assert victim.read_text("utf-8") == "{}"


def test_a_pipe_in_its_place_keeps_nobody_waiting(ledger: Path) -> None:
    os.mkfifo(note_path(ledger, "g"))
    assert environment_change(ledger, "g", None) is None
    keep_environment(ledger, "g", None)
    assert environment_change(ledger, "g", None) == NOTHING


def test_a_folder_in_its_place_is_left_there(ledger: Path) -> None:
    note_path(ledger, "g").mkdir()
    keep_environment(ledger, "g", None)
    forget_environment(ledger, "g")
    assert environment_change(ledger, "g", None) is None
    assert note_path(ledger, "g").is_dir()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b'{"key": "00"}',
        b'{"key": 7, "variables": {}}',
        b'{"key": "x", "variables": {}}',
        b'{"key": "00", "variables": []}',
        b'{"key": "00", "variables": {"A": 1}}',
        b"\xff" * 20,
        b"[" * 100_000,
    ],
)
def test_a_note_that_ttasks_did_not_write_counts_as_none(content: bytes, ledger: Path) -> None:
    note_path(ledger, "g").write_bytes(content)
    assert environment_change(ledger, "g", None) is None


def test_where_it_can_not_be_written_there_is_none(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing" / "ledger.db"
    keep_environment(nowhere, "g", None)
    forget_environment(nowhere, "g")
    assert environment_change(nowhere, "g", None) is None


def test_the_oldest_notes_go_first(ledger: Path) -> None:
    graphs = [new_id() for _ in range(NOTES_MAX + 4)]
    for age, graph in enumerate(graphs):
        keep_environment(ledger, graph, None)
        os.utime(note_path(ledger, graph), (age, age))
    keep_environment(ledger, graphs[-1], None)
    left = {path for path in ledger.parent.iterdir() if path != ledger}
    assert left == {note_path(ledger, graph) for graph in graphs[4:]}


def test_only_notes_make_room_for_notes(ledger: Path) -> None:
    another, folder = note_path(ledger, "production.db"), note_path(ledger, new_id())
    another.write_bytes(b"of another ledger")
    folder.mkdir()
    os.utime(another, (1, 1))
    os.utime(folder, (1, 1))
    for _ in range(NOTES_MAX + 3):
        keep_environment(ledger, new_id(), None)
    left = {path for path in ledger.parent.iterdir() if path != ledger}
    assert {another, folder} < left
    assert len(left) == NOTES_MAX + 2


# --- of runs ---------------------------------------------------------------------------------------------------------


def run(store: SQLiteStore | InMemoryStore, script: str) -> TaskGraph:
    graph = TaskGraph()
    graph.add(Task.bash(script))
    graph.run(TaskExecutor(store))
    return graph


def test_a_run_that_fails_leaves_a_note_and_one_that_succeeds_removes_it(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SQLiteStore(ledger) as store:
        done = run(store, f"test -f '{ledger}'-env-*")
        assert done.ok, "it is there while the run runs"
        assert store.environment_change(done) is None
        failed = run(store, 'test -n "$TARGET"')
        monkeypatch.setenv("TARGET", "staging")
        assert store.environment_change(failed) == EnvironmentChange((), (), ("TARGET",))
        assert store.environment_change(failed.id) == store.environment_change(failed)
        monkeypatch.delenv("TARGET")
        still = failed.retry()
        still.run(TaskExecutor(store))
        assert store.environment_change(still) == EnvironmentChange((), (), ())
        monkeypatch.setenv("TARGET", "staging")
        again = still.retry()
        again.run(TaskExecutor(store))
        assert again.ok
        assert store.environment_change(failed) is None, "what carried on with it has succeeded"
        assert store.environment_change(still) is None
    assert list(ledger.parent.glob("*-env-*")) == []


def test_a_ledger_in_memory_has_none() -> None:
    store = InMemoryStore()
    failed = run(store, "false")
    assert store.environment_change(failed) is None


def test_only_of_a_graph_it_is_told(ledger: Path) -> None:
    with SQLiteStore(ledger) as store:
        assert store.environment_change("../no/graph") is None
        with pytest.raises(TypeError, match="graph must be a TaskGraph or the id of one, got Task"):
            store.environment_change(Task.bash("true"))  # type: ignore[arg-type]


def test_a_resumed_run_keeps_the_note_of_its_beginning(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttasks.runtime.resume import ResumedRun

    with SQLiteStore(ledger) as store:
        failed = run(store, "false")
        before = note_path(ledger, failed.id).read_bytes()
        (state,) = store._readers.runs(failed.id)
        resumed = ResumedRun(TaskExecutor(store), failed, state, finally_only=False, force_handlers=False)
        resumed.note_environment()
    assert note_path(ledger, failed.id).read_bytes() == before
