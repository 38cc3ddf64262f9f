"""What agents did, as facts that a handler reports: all that there can be in a conversation, without any CLI."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from ttasks import CopilotError, TaskContext, clock
from ttasks.events import agent_facts as a
from ttasks.events.agent_facts import AgentFact, FileEdit

SESSION = "0d5b8a52-6a0e-4c8f-9a6e-2f6f6a1f4c11"
SUB_AGENT = "agent-7f3c2a90"
RULES = ("read", "write(src/*)", "shell(git *)", "shell(pytest *)", "deny shell(git push*)")


class Saying:
    """Makes the facts of one attempt, each a little later than the one before."""

    def __init__(self, attempt: int, began: datetime) -> None:
        self._attempt = attempt
        self._at = began

    def __call__(
        self, fact_type: Callable[..., AgentFact], *values: Any, after: float = 0.4, **named: Any
    ) -> AgentFact:
        self._at += timedelta(seconds=after)
        return fact_type(self._attempt, self._at, *values, **named)


def reports(facts: Callable[[Saying], Iterable[AgentFact]], answer: str = "") -> Callable[[TaskContext], str]:
    """Return a handler that reports facts, and returns (or, beginning with ``!``, fails with) an answer."""

    def handler(context: TaskContext) -> str:
        port = context._port
        assert port is not None
        for fact in facts(Saying(port.number, clock.now())):
            port.report(fact)
        if answer.startswith("!"):
            raise CopilotError(answer[1:], code="copilot_error")
        port.printed("stdout", f"{answer}\n")
        return answer

    return handler


def fixed(say: Saying) -> Iterable[AgentFact]:
    """Yield what an agent did that read, ran, was denied, edited and answered, with a sub-agent."""
    model = {"duration": 1.9, "multiplier": 1.0, "initiator": "agent", "finish_reason": "stop"}
    yield say(
        a.AgentSessionOpened, SESSION, False, "1.0.102", "1.0.27", "gpt-5.5", "high", "/home/kim/shop",
        account="gh-cli kim", permissions=RULES, excluded_tools=("web_fetch",),
    )  # fmt: skip
    yield say(a.AgentPrompted, "The test of the price with a discount fails. Find out why, fix it, and commit.")
    yield say(a.ModelCalled, "gpt-5.5", 9_420, 118, 8_192, nano_aiu=41_000_000.0, **model)
    yield say(a.AgentAnswered, "I'll run the tests first to see what fails.", False, "gpt-5.5")
    yield say(a.ToolCallStarted, "c1", "bash", {"command": "pytest -q tests/test_price.py", "description": "Run tests"})
    yield say(a.PermissionRequested, "r1", "shell", "pytest -q tests/test_price.py", "Run tests", "c1", after=0.02)
    yield say(a.PermissionDecided, "r1", "approved", "shell(pytest *)", after=0.01)
    printed = "\n".join(f"tests/test_price.py::test_{n} PASSED" for n in range(24))
    failed = f"{printed}\nE  assert Decimal('9.00') == Decimal('9.50')\n1 failed, 24 passed in 1.12s"
    yield say(a.ToolCallEnded, "c1", "failed", 1, failed, after=1.34)
    yield say(a.ModelCalled, "gpt-5.5", 10_880, 204, 9_216, nano_aiu=52_500_000.0, **model)
    yield say(a.ToolCallStarted, "c2", "task", {"description": "Explore", "prompt": "Where are discounts computed?"})
    yield say(a.ToolCallStarted, "c3", "grep", {"pattern": "discount", "path": "src"}, parent="c2", agent=SUB_AGENT)
    yield say(a.ToolCallEnded, "c3", "succeeded", output="src/price.py:14:    return price - discount * 2", after=0.05)
    yield say(a.AgentAnswered, "In src/price.py, line 14.", False, "gpt-5.4-mini", SUB_AGENT)
    yield say(a.ToolCallEnded, "c2", "succeeded", output="In src/price.py, line 14.")
    edit = {"path": "/home/kim/shop/src/price.py", "old_str": "discount * 2", "new_str": "discount"}
    yield say(a.ToolCallStarted, "c4", "edit", edit)
    yield say(a.PermissionRequested, "r2", "write", "/home/kim/shop/src/price.py", "Edit file", "c4", after=0.02)
    yield say(a.PermissionDecided, "r2", "approved", "write(src/*)", after=0.01)
    edited = (FileEdit("/home/kim/shop/src/price.py", "edit"),)
    yield say(a.ToolCallEnded, "c4", "succeeded", output="Edited.", files=edited, after=0.06)
    yield say(a.AgentErred, "rate_limit", "Too many requests; try again in 2 s", True, 429)
    command = "git commit -am 'Take the discount off once' && git push"
    yield say(a.ToolCallStarted, "c5", "bash", {"command": command, "description": "Commit and push"}, after=2.1)
    yield say(a.PermissionRequested, "r3", "shell", command, "Commit and push", "c5", after=0.02)
    told = "This is not permitted here: the rule 'deny shell(git push*)' forbids it."
    yield say(a.PermissionDecided, "r3", "denied", "deny shell(git push*)", told, after=0.01)
    yield say(a.ToolCallEnded, "c5", "denied", error="The user rejected this tool call.", after=0.02)
    yield say(
        a.PermissionRequested, "r4", "url", "https://docs.python.org/3/library/decimal.html", "Read about rounding"
    )
    yield say(a.PermissionDecided, "r4", "denied", "no rule", after=0.01)
    yield say(a.ModelCalled, "gpt-5.5", 12_040, 96, 10_240, nano_aiu=38_250_000.0, **model)
    answer = (
        "The discount was taken off twice. It is fixed in src/price.py; I may not push, so please do that yourself."
    )
    yield say(a.AgentAnswered, answer, False, "gpt-5.5")
    yield say(
        a.AgentTurnEnded, 3, 32_340, 418, 27_648, 0,
        premium_requests=1.0, nano_aiu=131_750_000.0, requests=1, lines_added=1, lines_removed=1,
    )  # fmt: skip


def cut_off(say: Saying, text: str = "half an ans") -> Iterable[AgentFact]:
    """Yield what an agent did that was cut off while a tool ran and a request waited."""
    yield say(a.AgentSessionOpened, SESSION, True, provider="http://127.0.0.1:8080/v1", permissions=(), tools=())
    yield say(a.AgentPrompted, "Go on.\n\nIt was: clean up")
    yield say(a.ToolCallStarted, "c1", "bash", {"command": "sleep 9999"})
    yield say(a.ToolCallStarted, "c2", "deploy", {"target": {"name": "prod", "dry": False}}, "ops")
    yield say(a.PermissionRequested, "r1", "mcp", "ops/deploy", None, "c2")
    yield say(a.AgentAnswered, text, True)
    yield say(a.AgentErred, "query", "the connection was lost", False)
    yield say(a.AgentAborted, "timeout")
    yield say(a.ToolCallEnded, "c1", "aborted")


def repeating(text: str) -> Callable[[Saying], Iterable[AgentFact]]:
    """Return what says one text wherever a fact holds one."""

    def facts(say: Saying) -> Iterable[AgentFact]:
        yield say(a.AgentSessionOpened, text, False, *[text] * 5, account=text, permissions=(text,), tools=(text,))
        yield say(a.AgentPrompted, text)
        yield say(a.ToolCallStarted, text, text, {text: text, "command": text}, text, text, text)
        yield say(a.PermissionRequested, text, text, f"{text}!", text, text, text)
        yield say(a.PermissionDecided, text, "denied", text, text)
        yield say(a.ToolCallEnded, text, "failed", 1, f"{text}\n" * 20, text, (FileEdit(text, text),))
        yield say(a.PermissionRequested, f"{text}2", text, text, text, None, text)
        yield say(a.AgentAnswered, text, True, text, text)
        yield say(a.ModelCalled, text, 1, 2, 3, initiator=text, finish_reason=text, call=text, agent=text)
        yield say(a.AgentErred, text, text, False, 500, text)
        yield say(a.AgentAborted, text)

    return facts
