"""What a person can do next: the command and the pages say the same, and each command that they print works."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from click.testing import CliRunner

from pages import get_all
from ttasks import SQLiteStore, TaskExecutor
from ttasks.cli.app import command

KILLED = """
import os, sys
from ttasks import *
path, victim, on_interrupted, is_cancelled = sys.argv[1:]
store = SQLiteStore(path)
graph = TaskGraph(title="g")
titles = ("first", "work", "after", "clean")
first, work, after, clean = (Task.bash("true", title=title, on_interrupted=on_interrupted) for title in titles)
graph.add(first); graph.add(work, after=[first]); graph.add(after, after=[work])
graph.add(clean, after=[work], finally_=True)
executor = TaskExecutor(store)
def hear(event):
    if event.type == "started" and event.task.title == victim:
        if is_cancelled == "cancelled":
            store.graphs.cancel(graph.id)
        os.kill(os.getpid(), 9)
executor.events.subscribe(hear)
graph.run(executor)
"""
COMMAND = re.compile(r"ttasks ((?:resolve|resume|retry|cancel) \S+(?: --(?:rerun|env \S+))*)")


@pytest.fixture(autouse=True)
def _signals_stay(outside_git: Path) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def said(text: str) -> list[str]:
    """Return the commands in a text, with each id by its end."""
    return [re.sub(r"\S*(\S{8})( |$)", r"\1\2", words.partition(" ")[2]).join([words.split()[0] + " ", ""])
            for words in COMMAND.findall(text)]  # fmt: skip


def on_page(text: str) -> list[str]:
    return said("\n".join(unescape(each) for each in re.findall(r'<code class="command"[^>]*>(.*?)</code>', text)))


def ttasks(path: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, [*words, "--ledger", str(path)])
    return done.exit_code, done.output


def check(path: Path, folder: Path) -> None:
    """Check that all places agree on what can be done next in a ledger, and that all of it can be done."""
    with SQLiteStore(path, read_only=True) as store:
        (graph,) = store.graphs.values()
        tasks = list(graph)
    home, page, *of_tasks = get_all(
        path, "/-/ttasks/ledger", f"graph/{graph.id}", *(f"task/{task.id}" for task in tasks)
    )
    listed = said(ttasks(path, "resume", "--list")[1])
    steps = on_page(page.text)
    assert [step for step in on_page(home.text) if not step.startswith("verify")] == listed
    assert set(listed) <= set(steps)
    if graph.run_status in ("running", "interrupted"):
        assert listed == steps
    for task, answer in zip(tasks, of_tasks, strict=True):
        of_task = [step for step in on_page(answer.text) if not step.startswith("resolve") or "--rerun" in step]
        assert set(of_task) <= set(steps)
        assert {step for step in steps if task.id[-8:] in step} <= set(of_task)
    for number, step in enumerate(steps):
        copy = folder / f"{number}" / "ledger.db"
        shutil.copytree(path.parent, copy.parent)
        words = step.split()
        others = (["--succeeded"], ["--failed"]) if words[0] == "resolve" else ()
        for options in (words[2:], *others):
            code, printed = ttasks(copy, *words[:2], *options)
            assert code in (0, 1), printed
            assert "nothing to" not in printed and "ttasks: " not in printed
            shutil.rmtree(copy.parent)
            shutil.copytree(path.parent, copy.parent)
        shutil.rmtree(copy.parent)


COMBINATIONS = [*itertools.product(("work", "clean"), ("rerun", "ask"), ("on", "cancelled")), ("work", "fail", "on")]


@pytest.mark.parametrize(("victim", "on_interrupted", "is_cancelled"), COMBINATIONS)
def test_the_command_and_the_pages_agree_on_what_can_be_done_and_all_of_it_works(
    tmp_path: Path, victim: str, on_interrupted: str, is_cancelled: str
) -> None:
    path = tmp_path / "ledger" / "ledger.db"
    path.parent.mkdir()
    words = [sys.executable, "-c", KILLED, str(path), victim, on_interrupted, is_cancelled]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    check(path, tmp_path / "killed")
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.resume()
        (graph,) = store.graphs.values()
        left = [task.id for task in graph if task.is_interrupted]
    check(path, tmp_path / "closed")
    for answer in ("rerun", "succeeded") if left else ():
        copy = tmp_path / answer / "ledger.db"
        shutil.copytree(path.parent, copy.parent)
        with SQLiteStore(copy) as store:
            store.tasks.resolve(left[0], answer)
        check(copy, tmp_path / f"{answer}-copies")
