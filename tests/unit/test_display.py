"""How things are told to people: numbers with their nouns, and what an agent did in few words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttasks import display
from ttasks.cli.text import STYLES
from ttasks.events.agent_facts import AgentSessionOpened, FileEdit
from ttasks.events.status import TaskStatus

AT = datetime(2026, 11, 24, 8, tzinfo=UTC)


def opened(**more: Any) -> AgentSessionOpened:
    return AgentSessionOpened(1, AT, "s", False, **more)


@given(st.text(st.characters() | st.sampled_from("\x1b\t\r\0\u202e\u200d\ufe0f\udcff\\")))
def test_each_character_that_could_steer_a_terminal_is_spelled_out(text: str) -> None:
    spelled = {"\t": "    ", "\u200d": "\u200d", "\ufe0f": "\ufe0f"}
    for ch in text:
        spelled.setdefault(ch, ch if ch.isprintable() else ch.encode("unicode_escape").decode())
    assert display.printable(text) == "".join(spelled[ch] for ch in text)


@pytest.mark.parametrize(
    ("arguments", "told", "others"),
    [
        (None, "", {}),
        ("raw text", "raw text", {}),
        ({"command": "ls", "description": "look"}, "ls", {"description": "look"}),
        ({"path": "src", "pattern": "x"}, "x", {"path": "src"}),
        ({"path": "a", "lines": [1, 2]}, "a", {"lines": "[1, 2]"}),
        ({"command": ["ls", "-l"]}, '{"command": ["ls", "-l"]}', {}),
        ({"odd": "é"}, '{"odd": "é"}', {}),
        ([1, "a"], '[1, "a"]', {}),
        (7, "7", {}),
    ],
)
def test_a_tool_was_called_for_what_says_most(arguments: Any, told: str, others: dict[str, str]) -> None:
    assert display.called_for(arguments) == told
    assert display.other_arguments(arguments) == others


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((None, None, None), ""),
        ((1, None, None), "1 token in"),
        ((1200, 70, 1000), "1,200 tokens in (1,000 cached), 70 out"),
        ((1200, 70, 0), "1,200 tokens in, 70 out"),
        ((None, 70, None), "70 tokens out"),
    ],
)
def test_tokens_are_told_as_far_as_they_are_known(counts: tuple[Any, Any, Any], told: str) -> None:
    assert display.tokens(*counts) == told


@pytest.mark.parametrize(
    ("premium_requests", "nano_aiu", "told"),
    [
        (None, None, ""),
        (1.0, None, "1 premium request"),
        (0.33, 131_750_000.0, "0.33 premium requests, 0.1318 AI credits"),
        (None, 2.5e12, "2,500 AI credits"),
    ],
)
def test_a_cost_is_told_as_far_as_the_agent_said_it(premium_requests: Any, nano_aiu: Any, told: str) -> None:
    assert display.cost(premium_requests, nano_aiu) == told


def test_lines_and_files_that_changed_are_told() -> None:
    assert display.lines_changed(None, None) == display.lines_changed(0, 0) == ""
    assert display.lines_changed(12, None) == "+12 -0 lines"
    assert display.files_changed((FileEdit("a", "create"), FileEdit("b", "edit"))) == "a (create), b (edit)"
    assert display.files_changed(None) == ""


def test_a_session_says_what_ran_it_and_what_it_had() -> None:
    assert display.agent_of(opened()) == ""
    assert display.agent_of(opened(cli_version="1", sdk_version="2")) == "CLI 1, SDK 2"
    assert display.model_of(opened()) == "the default model"
    assert display.model_of(opened(model="m", reasoning_effort="high")) == "m, reasoning effort high"
    assert display.through(opened()) == "GitHub Copilot"
    assert display.through(opened(account="kim")) == "GitHub Copilot, kim"
    assert display.through(opened(provider="http://127.0.0.1/v1", account="kim")) == "http://127.0.0.1/v1"
    assert display.tools_of(opened()) == ""
    assert display.tools_of(opened(tools=())) == "none"
    assert display.tools_of(opened(tools=("bash", "view"), excluded_tools=("sql",))) == "only bash, view, without sql"


def test_every_word_looks_like_a_status() -> None:
    statuses = set(map(str, TaskStatus))
    assert {display.looks_like(word) for word in display.LOOKS_LIKE} <= statuses == set(STYLES)
    assert display.looks_like("running") == "running"
