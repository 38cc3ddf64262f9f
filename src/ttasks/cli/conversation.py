"""What an agent did in an attempt, in a terminal: a line or a few for each step, in the order of the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from rich.text import Text

from ttasks import display
from ttasks.cli.text import console, state
from ttasks.display import printable
from ttasks.events import agent_facts as a
from ttasks.events.envelope import RecordedEvent
from ttasks.events.status import TaskStatus
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers
from ttasks.state.agent import AGENT_FACTS, PermissionState, ToolCallState
from ttasks.state.task import AttemptState

STEPS_MAX: Final = 40
"""How many steps are printed where not all are asked for, the latest."""
LINES_MAX: Final = 12
"""How many lines of a text are printed where not all are asked for."""
LINE_MAX: Final = 400
"""How many characters of what has to fit into a line are printed."""
_FACTS: Final = tuple(each.__name__ for each in AGENT_FACTS)


class Conversation:
    """What was recorded of an agent in one attempt. `is_left`: its runner is gone, though no event says so."""

    def __init__(self, readers: Readers, attempt: AttemptState, *, is_left: bool) -> None:
        task_id, number = attempt.task_id, attempt.attempt
        wanted = EventFilter(f"task-{task_id}", types=_FACTS, after=attempt.position)
        self._events = (event for event in readers.matching(wanted) if event.attempt == number)
        self._calls = {call.position: call for call in readers.tool_calls(task_id, number)}
        self._requests = {request.position: request for request in readers.permissions(task_id, number)}
        self._is_left = is_left and attempt.status is TaskStatus.RUNNING

    def print(self, *, whole: bool) -> bool:
        """Print it, all of it or the latest steps; return whether there was anything."""
        out = console()
        steps: deque[list[Text]] = deque(maxlen=None if whole else STEPS_MAX)
        count, found, totals = 0, False, None
        for event in self._events:
            found = True
            if isinstance(event.fact, a.AgentSessionOpened):
                _print_session(event.fact)
            elif isinstance(event.fact, a.AgentTurnEnded):
                totals = event.fact
            elif lines := list(self._lines(event, whole=whole)):
                count += 1
                steps.append(lines)
        if count > len(steps):
            out.print(Text(f"last {len(steps)} of {count} steps (--output prints all):", style="dim"))
        for lines in steps:
            for line in lines:
                out.print(line)
        if totals is not None:
            _field("turn", _totals(totals))
        return found

    def _lines(self, event: RecordedEvent, *, whole: bool) -> Iterator[Text]:
        fact: Any = event.fact
        of = f"sub-agent {display.short(printable(fact.agent))}: " if getattr(fact, "agent", None) else ""
        if isinstance(fact, a.AgentPrompted):
            yield from _text(fact.prompt, whole=whole, before="> ", style="bold")
        elif isinstance(fact, a.AgentAnswered):
            yield from _text(f"{of}{fact.text}{' … (the rest never came)' if fact.is_partial else ''}", whole=whole)
        elif isinstance(fact, a.ToolCallStarted):
            yield self._call(self._calls.get(event.position), fact, of)
            yield from self._changed(self._calls.get(event.position))
        elif isinstance(fact, a.PermissionRequested):
            yield self._request(self._requests.get(event.position), fact, of)
        elif isinstance(fact, a.AgentErred):
            code = f" ({fact.status_code})" if fact.status_code is not None else ""
            then = "; it tries again" if fact.is_retried else ""
            yield Text.assemble(("error", "red"), f" {of}{_one_line(f'{fact.kind}{code}: {fact.message}')}{then}")
        elif isinstance(fact, a.AgentAborted):
            yield Text.assemble(("aborted", "yellow"), f": {printable(fact.why)}")

    def _call(self, call: ToolCallState | None, fact: a.ToolCallStarted, of: str) -> Text:
        """Return ``tool bash: make -> failed (exit 3), 1.20 s``."""
        status: str = call.status if call is not None else "unknown"
        status = "unknown" if status == "running" and self._is_left else status
        tool = f"{fact.server}/{fact.tool}" if fact.server else fact.tool
        subject = _one_line(display.called_for(fact.arguments))
        code = f" (exit {call.exit_code})" if call is not None and call.exit_code is not None else ""
        took = f", {display.duration(call.duration)}" if call is not None and call.duration is not None else ""
        error = f": {_one_line(call.error)}" if call is not None and call.error and status == "failed" else ""
        said = f" {of}{printable(tool)}{': ' if subject else ''}{subject} -> "
        return Text.assemble(("tool", "dim"), said, state(status), f"{code}{took}{error}")

    def _changed(self, call: ToolCallState | None) -> Iterable[Text]:
        if call is not None and call.files:
            yield Text.assemble(("  changed", "dim"), f" {_one_line(display.files_changed(call.files))}")

    def _request(self, request: PermissionState | None, fact: a.PermissionRequested, of: str) -> Text:
        """Return ``permission shell "make" approved by shell(make*)``."""
        undecided = "unanswered" if self._is_left or request is None else "pending"
        decision = (request.decision if request is not None else None) or undecided
        by = f" by {printable(request.decided_by)}" if request is not None and request.decided_by else ""
        told = f": {_one_line(request.feedback)}" if request is not None and request.feedback else ""
        said = f' {of}{printable(fact.kind)} "{_one_line(fact.subject)}" '
        return Text.assemble(("  permission", "dim"), said, state(decision), f"{by}{told}")


def _print_session(opened: a.AgentSessionOpened) -> None:
    """Print what ran the agent and what it was allowed."""
    said = [f"{opened.session}{' (taken up again)' if opened.is_resumed else ''}", display.model_of(opened)]
    said += [f"through {display.through(opened)}", display.agent_of(opened)]
    _field("session", ", ".join(filter(None, said)))
    if opened.permissions is not None:
        _field("decides", ", ".join(opened.permissions) or "nothing: all is denied")
    if display.tools_of(opened):
        _field("tools", display.tools_of(opened))


def _field(name: str, value: str) -> None:
    console().print(Text.assemble((f"{name:<9}", "dim"), " ", printable(value)))


def _totals(total: a.AgentTurnEnded) -> str:
    calls = display.count(total.model_calls, "model call") if total.model_calls is not None else ""
    tokens = display.tokens(total.input_tokens, total.output_tokens, total.cache_read_tokens)
    cost = display.cost(total.premium_requests, total.nano_aiu)
    lines = display.lines_changed(total.lines_added, total.lines_removed)
    return ", ".join(filter(None, (calls, tokens, cost, lines)))


def _text(text: str, *, whole: bool, before: str = "", style: str = "") -> Iterator[Text]:
    lines = text.rstrip("\n").split("\n")
    shown = lines if whole or len(lines) <= LINES_MAX + 1 else lines[:LINES_MAX]
    for line in shown:
        cut = line if whole or len(line) <= 2 * LINE_MAX else f"{line[: 2 * LINE_MAX]}…"
        yield Text(f"{before}{printable(cut)}", style=style)
    if len(shown) < len(lines):
        yield Text(f"{before}… {display.count(len(lines) - len(shown), 'more line')}", style="dim")


def _one_line(text: str) -> str:
    line = " ".join(text[: 4 * LINE_MAX].split())
    return printable(line if len(line) <= LINE_MAX else f"{line[:LINE_MAX]}…")
