"""Copilot tasks with the real GitHub Copilot: they need an account, cost a little, and never run in CI.

``TTASKS_LIVE=1 pytest tests/integration/test_copilot_live.py``, with what `make_copilot_agent_handler` needs in the
environment: somebody who is signed in, and a CLI on PATH or in COPILOT_CLI_PATH. TTASKS_LIVE_MODEL names another model
than the default ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttasks import (
    SQLiteStore,
    Task,
    TaskExecutor,
    TaskStatus,
    TaskType,
    make_copilot_agent_handler,
    make_copilot_prompt_handler,
)
from ttasks.events.agent_facts import AgentSessionOpened, AgentTurnEnded, PermissionDecided, ToolCallEnded
from ttasks.log.verify import verify

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.environ.get("CI") == "true", reason="CI has no account"),
    pytest.mark.skipif(
        os.environ.get("TTASKS_LIVE") != "1", reason="TTASKS_LIVE=1 lets it ask GitHub Copilot, which costs a little"
    ),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def executor(store: SQLiteStore) -> Iterator[TaskExecutor]:
    model = os.environ.get("TTASKS_LIVE_MODEL")
    options = {"model": model} if model else {}
    with TaskExecutor(store) as made:
        made.register(TaskType.PROMPT, make_copilot_prompt_handler(timeout=120, **options))
        made.register(
            TaskType.AGENT,
            make_copilot_agent_handler(timeout=240, permissions=["read", "write", "shell(cat *)"], **options),
        )
        yield made


def test_a_prompt_is_answered(executor: TaskExecutor, store: SQLiteStore) -> None:
    task = Task.prompt("Answer with the one word: ledger")
    assert "ledger" in executor.execute(task).output.lower()
    facts = [event.fact for event in store.history(task)]
    (opened,) = [fact for fact in facts if isinstance(fact, AgentSessionOpened)]
    assert opened.account and opened.provider is None
    (totals,) = [fact for fact in facts if isinstance(fact, AgentTurnEnded)]
    assert totals.model_calls and totals.input_tokens and totals.output_tokens


def test_an_agent_writes_a_file_and_all_of_it_is_recorded(
    executor: TaskExecutor, store: SQLiteStore, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    task = Task.agent("Create a file hello.txt that holds the one line: hello ledger", cwd=str(folder))
    executor.execute(task)
    assert task.status is TaskStatus.SUCCEEDED
    assert (folder / "hello.txt").read_text().strip() == "hello ledger"
    facts = [event.fact for event in store.history(task)]
    assert any(isinstance(fact, ToolCallEnded) and fact.outcome == "succeeded" for fact in facts)
    assert any(isinstance(fact, PermissionDecided) and fact.by == "write" for fact in facts)
    assert verify(store._readers).is_clean
