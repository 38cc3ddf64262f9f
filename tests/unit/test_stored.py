"""Texts that stay in the ledger: where an attempt's are found, and what is said where they are not."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ttasks import LedgerError, SQLiteStore, Task, TaskExecutor, TaskType
from ttasks.events.facts import TaskOutput, TaskProgressed, TaskSucceeded
from ttasks.log.stored import PrintedText, ReturnedText, StoredAttempt, StoredText


@pytest.fixture
def attempt(tmp_path: Path) -> StoredAttempt:
    """Of a task that printed ``out`` and then was started again, and returned ``returned``."""
    with SQLiteStore(tmp_path / "ledger.db") as store:
        executor = TaskExecutor(store)
        task = Task.bash("printf out; exit 1")
        with pytest.raises(RuntimeError):
            executor.execute(task)
        executor.register(TaskType.BASH, lambda _: "returned")
        executor.execute(task)
        first = next(event.position for event in store.events(task=task, type="TaskStarted"))
        assert store._log is not None
        return StoredAttempt(store._log.text_readers, store._ledger, task.id, 1, first)


def test_a_text_is_found_among_those_of_its_attempt(attempt: StoredAttempt) -> None:
    text = PrintedText(attempt, 3, "stdout", 0, 1)
    assert (text.read(), str(text), list(text.parts()), pickle.loads(pickle.dumps(text))) == (
        "out", "out", ["out"], "out",
    )  # fmt: skip
    assert repr(text) == "<3 characters, in the ledger>"
    assert len({text, PrintedText(attempt, 3, "stdout", 0, 1), PrintedText(attempt, 3, "stdout", 1, 1)}) == 2
    assert text != "out"


def test_what_is_not_recorded_yet_follows(attempt: StoredAttempt) -> None:
    chunks = (("stdout", "", " more"), ("stderr", "", "no"), ("stdout", "", " and more"))
    attempt.unwritten = lambda: [
        TaskSucceeded(1, output="x"),
        TaskOutput(1, chunks),
        TaskProgressed(1, datetime.now(UTC)),
    ]
    assert PrintedText(attempt, 8, "stdout", 0, 2).read() == "out more"
    assert PrintedText(attempt, 14, "stdout", 1, 2).read() == " more and more"
    assert ReturnedText(attempt, 1).read() == "x"


@pytest.mark.parametrize("kind", [lambda it: PrintedText(it, 9, "stdout", 0, 2), lambda it: ReturnedText(it, 8)])
def test_what_the_ledger_lacks_is_said(attempt: StoredAttempt, kind: type[StoredText]) -> None:
    text = kind(attempt)  # type: ignore[call-arg]
    with pytest.raises(LedgerError, match=r"only in its ledger: .* missing there; `ttasks verify` says more"):
        text.read()
    assert str(text).endswith("`ttasks verify` says more)")
    with pytest.raises(NotImplementedError):
        StoredText(attempt, 1).parts()


def swap_for_a_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("", "utf-8")


INSTEAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "is gone; put it back"),
    "no folder": (lambda path: path.parent.rmdir(), "is gone; put it back"),
    "a file in place of the folder": (swap_for_a_file, "is gone; put it back"),
    "a folder": (lambda path: path.mkdir(), "is no regular file"),
    "a pipe": (os.mkfifo, "is no regular file"),
    "a link to itself": (lambda path: path.symlink_to(path), "can't be read: Too many levels of symbolic links"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", INSTEAD)
def test_whatever_is_in_place_of_the_ledger_is_said(tmp_path: Path, what: str) -> None:
    path = tmp_path / "of it" / "ledger.db"
    with SQLiteStore(path) as store:
        task = Task.bash("seq 20000")
        printed = TaskExecutor(store).execute(task).raw.stdout
    assert len(printed) == 108_894
    for each in path.parent.iterdir():
        each.unlink()

    put, said = INSTEAD[what]
    put(path)

    with pytest.raises(LedgerError, match=rf"only in its ledger: .*ledger\.db {said}"):
        task.result.raw.stdout  # noqa: B018
