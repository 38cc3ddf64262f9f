"""What an agent did in an attempt, in the order of the log: a part at a time, however much that is."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ttasks import clock, display
from ttasks.datasette_plugin.ledgers import Ledger
from ttasks.datasette_plugin.page import Asked
from ttasks.datasette_plugin.terminal import Block
from ttasks.errors import DamagedLedgerError
from ttasks.events import agent_facts as a
from ttasks.events.envelope import RecordedEvent
from ttasks.events.status import TaskStatus
from ttasks.log.projection import select
from ttasks.log.query import ENVELOPE, POSITION_MAX, EventFilter
from ttasks.log.reading import UNREADABLE, Readers, event_of, in_one_view
from ttasks.state import rows
from ttasks.state.agent import AGENT_FACTS, PermissionState, ToolCallState
from ttasks.state.task import AttemptState, TaskState
from ttasks.stores.interrupted import Leftovers

ENTRIES_MAX: Final = 100
"""How many entries a page shows."""
TEXT_MAX: Final = 16_000
"""How many characters of a prompt, a message or an argument are shown; the page of its event has all."""
_ASKED_MAX: Final = 10 * ENTRIES_MAX
"""How many requests are looked at for the calls of one page."""
OUTPUT_MAX: Final = 8_000
"""How many characters of what a tool gave out are shown."""
SUMMARY_MAX: Final = 100
"""How many characters of its last line stand for it while it is folded."""

_KINDS: Final[Mapping[type, str]] = {
    a.AgentPrompted: "prompt",
    a.AgentAnswered: "message",
    a.ToolCallStarted: "tool",
    a.PermissionRequested: "request",
    a.ModelCalled: "model",
    a.AgentErred: "error",
    a.AgentAborted: "abort",
}
"""What makes an entry, and what it is called. How a call ended, and what was decided, is told where it began."""
_ENTRIES: Final = tuple(each.__name__ for each in _KINDS)
_FACTS: Final = tuple(each.__name__ for each in AGENT_FACTS)


@dataclass(frozen=True)
class Request:
    """A request for permission; `decision` is ``pending`` while nobody decided."""

    state: PermissionState
    decision: str


@dataclass(frozen=True)
class Call:
    """A call of a tool: what it was called for, its other arguments by name, and what came of it."""

    state: ToolCallState
    status: str
    seconds: float | None
    subject: Block
    others: Sequence[tuple[str, Block]]
    output: Block | None
    error: Block | None
    requests: Sequence[Request]


@dataclass(frozen=True)
class Entry:
    """One step of a conversation. `kind` is one of the words in `_KINDS`; `seconds` are since the attempt began."""

    event: RecordedEvent
    fact: Any
    kind: str
    seconds: float
    text: Block | None = None
    call: Call | None = None
    request: Request | None = None


@dataclass(frozen=True)
class Sums:
    """What an attempt came to so far: how many calls and requests ended how, and what the models were sent."""

    calls: Mapping[str, int]
    decisions: Mapping[str, int]
    model_calls: int
    tokens: str
    cost: str
    lines: str


class Conversation:
    """What was recorded of an agent in one attempt."""

    def __init__(self, readers: Readers, task: TaskState, attempt: AttemptState, before: int | None) -> None:
        self._readers = readers
        self._task_id = task.id
        self._attempt = attempt
        self._all = EventFilter(f"task-{task.id}", types=_FACTS, after=attempt.position, before=before)
        is_running = attempt.status is TaskStatus.RUNNING
        self._is_left = is_running and Leftovers(readers).task_status(task)[0] is TaskStatus.INTERRUPTED

    def first(self, fact_type: type) -> Any:
        """Return the first fact of a type; None: there is none."""
        wanted = replace(self._all, types=(fact_type.__name__,), limit=1)
        return next((event.fact for event in self._readers.matching(wanted)), None)

    def is_empty(self) -> bool:
        """True when nothing was recorded."""
        return next(self._readers.matching(replace(self._all, limit=1)), None) is None

    def count(self, before: int | None = None) -> int:
        """Return how many entries there are, before a position where it is given."""
        return self._readers.count_matching(self._entries(before=before))

    def events(self, *, before: int | None = None, after: int | None = None) -> list[RecordedEvent]:
        """Return what makes a page of entries: the last ones (before a position), or the first after a position."""
        wanted = replace(self._entries(before=before, after=after), limit=ENTRIES_MAX, newest_first=after is None)
        found = list(self._readers.matching(wanted))
        return found if after is not None else found[::-1]

    def _entries(self, *, before: int | None = None, after: int | None = None) -> EventFilter:
        bounds = [bound for bound in (before, self._all.before) if bound is not None]
        return replace(
            self._all,
            types=_ENTRIES,
            after=max(self._attempt.position, after or 0),
            before=min(bounds) if bounds else None,
        )

    def entries(self, events: Sequence[RecordedEvent]) -> list[Entry]:
        """Return the entries that these events make."""
        if not events:
            return []
        calls, requests = self._rows(events[0].position, events[-1].position)
        outputs = self._outputs([call.end_position for call in calls.values() if call.end_position is not None])
        of_calls: dict[str, list[Request]] = {}
        ids = {event.fact.call for event in events if isinstance(event.fact, a.ToolCallStarted)}
        for request in requests.values():
            if request.call in ids and request.call is not None:
                of_calls.setdefault(request.call, []).append(self._request(request))
        found = []
        for event in events:
            fact: Any = event.fact
            entry = Entry(event, fact, _KINDS[type(fact)], display.between(self._attempt.started_at, fact.at))
            if isinstance(fact, a.ToolCallStarted):
                call = calls.get(event.position) or _unknown(fact, self._task_id, event.position)
                ended = outputs.get(call.end_position or 0)
                entry = replace(entry, call=self._call(call, ended, of_calls.get(fact.call, [])))
            elif isinstance(fact, a.PermissionRequested):
                if fact.call in ids:
                    continue
                request = requests.get(event.position) or _unanswered(fact, self._task_id, event.position)
                entry = replace(entry, request=self._request(request))
            elif (text := _text_of(fact)) is not None:
                entry = replace(entry, text=Block.of(text, TEXT_MAX))
            found.append(entry)
        return found

    def _rows(self, first: int, last: int) -> tuple[dict[int, ToolCallState], dict[int, PermissionState]]:
        """Return what was called and asked for between two positions, and a little after, by position."""
        where = "WHERE task_id = ? AND attempt = ? AND position BETWEEN ? AND ? ORDER BY position"
        values = (self._task_id, self._attempt.attempt, first)

        def question(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            calls = connection.execute(select("tool_calls", where), (*values, last)).fetchall()
            # What was asked for a call at the end of the page may come after it.
            asked = connection.execute(select("permissions", f"{where} LIMIT ?"), (*values, POSITION_MAX, _ASKED_MAX))
            return calls, asked.fetchall()

        calls, requests = self._readers.ask(in_one_view(question))
        try:
            return (
                {call.position: call for call in map(rows.tool_call_state, calls)},
                {request.position: request for request in map(rows.permission_state, requests)},
            )
        except UNREADABLE as error:
            raise DamagedLedgerError(f"a row of what an agent did can't be read: {error!r:.200}") from error

    def _outputs(self, positions: Sequence[int]) -> dict[int, a.ToolCallEnded]:
        marks = ", ".join("?" * len(positions))
        query = f"SELECT {ENVELOPE} FROM events WHERE position IN ({marks})"  # noqa: S608
        found = self._readers.ask(lambda connection: connection.execute(query, list(positions)).fetchall())
        events = map(event_of, found)
        return {event.position: event.fact for event in events if isinstance(event.fact, a.ToolCallEnded)}

    def _call(self, state: ToolCallState, ended: a.ToolCallEnded | None, requests: Sequence[Request]) -> Call:
        status = "unknown" if state.status == "running" and self._is_left else state.status
        seconds = state.duration
        if status == "running":
            seconds = display.between(state.started_at, clock.now())
        return Call(
            state=state,
            status=status,
            seconds=seconds,
            subject=Block.of(display.called_for(state.arguments), TEXT_MAX),
            others=[
                (name, Block.of(text, TEXT_MAX)) for name, text in display.other_arguments(state.arguments).items()
            ],
            output=_output(ended.output) if ended is not None and ended.output else None,
            error=Block.of(ended.error, OUTPUT_MAX) if ended is not None and ended.error else None,
            requests=requests,
        )

    def _request(self, state: PermissionState) -> Request:
        return Request(state, state.decision or ("unanswered" if self._is_left else "pending"))

    def sums(self) -> Sums:
        """Return what the attempt came to so far; what the agent itself says of it goes before our own count."""
        of_attempt = "WHERE task_id = ? AND attempt = ?"
        values = (self._task_id, self._attempt.attempt)
        sent = "count(*), sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(nano_aiu)"
        calls = f"SELECT status, count(*) FROM tool_calls {of_attempt} GROUP BY status"  # noqa: S608
        decisions = f"SELECT decision, count(*) FROM permissions {of_attempt} GROUP BY decision"  # noqa: S608
        models = f"SELECT {sent} FROM model_calls {of_attempt}"  # noqa: S608

        def question(connection: sqlite3.Connection) -> tuple[dict[str, int], dict[str | None, int], Any]:
            return (
                dict(connection.execute(calls, values).fetchall()),
                dict(connection.execute(decisions, values).fetchall()),
                connection.execute(models, values).fetchone(),
            )

        by_status, by_decision, (count, tokens_in, tokens_out, cached, nano_aiu) = self._readers.ask(
            in_one_view(question)
        )
        if self._is_left and "running" in by_status:
            by_status["unknown"] = by_status.pop("running") + by_status.get("unknown", 0)
        open_ = by_decision.pop(None, 0)
        decided = {str(word): number for word, number in by_decision.items()}
        if open_:
            word = "unanswered" if self._is_left else "pending"
            decided[word] = open_ + decided.get(word, 0)
        total: a.AgentTurnEnded | None = self.first(a.AgentTurnEnded)
        if total is None:
            told = display.tokens(tokens_in, tokens_out, cached), display.cost(None, nano_aiu), ""
        else:
            told = (
                display.tokens(total.input_tokens, total.output_tokens, total.cache_read_tokens),
                display.cost(total.premium_requests, total.nano_aiu),
                display.lines_changed(total.lines_added, total.lines_removed),
            )
        return Sums(by_status, decided, count, *told)


def _output(text: str) -> Block:
    """Return what a tool gave out; where it is folded, under its last line, which says most often how it went."""
    block = Block.of(text, OUTPUT_MAX)
    if not block.summary:
        return block
    lines = text[-OUTPUT_MAX:].rstrip().split("\n")
    if len(lines) > 1 and lines[-1].startswith("<shellId:"):  # the agent's own note
        del lines[-1]
    last = lines[-1].strip()
    shown = display.printable(last[-SUMMARY_MAX:])
    length = f"{display.count(text.count(chr(10)) + 1, 'line')}, {len(text):,} characters"
    return replace(block, summary=f"… {shown} ({length})")


def _text_of(fact: object) -> str | None:
    if isinstance(fact, a.AgentPrompted):
        return fact.prompt
    if isinstance(fact, a.AgentAnswered):
        return fact.text
    return fact.message if isinstance(fact, a.AgentErred) else None


def _unknown(fact: a.ToolCallStarted, task_id: str, position: int) -> ToolCallState:
    """Return a call that has no row, because its attempt had ended: nobody says what became of it."""
    return ToolCallState(
        position, task_id, fact.attempt, fact.call, fact.tool, "unknown", fact.at, fact.arguments, fact.server
    )


def _unanswered(fact: a.PermissionRequested, task_id: str, position: int) -> PermissionState:
    return PermissionState(
        position, task_id, fact.attempt, fact.request, fact.kind, fact.subject, fact.at, decision="unanswered"
    )


def shown(ledger: Ledger, task: TaskState, number: int, asked: Asked) -> Mapping[str, Any] | None:
    """Return what a page shows of an attempt's conversation; None: nothing was recorded.

    Raises:
        NotFoundError: the part that is asked for is no number.
    """
    readers = ledger.readers
    attempts = {each.attempt: each for each in readers.attempts(task.id)}
    attempt = attempts.get(number)
    if attempt is None:
        return None
    following = attempts.get(number + 1)
    conversation = Conversation(readers, task, attempt, following.position if following is not None else None)
    if conversation.is_empty():
        return None
    before, after = asked.number("said_before"), asked.number("said_after")
    count = conversation.count()
    events = conversation.events(before=before, after=after if before is None else None)
    first = conversation.count(events[0].position) + 1 if events else 0
    last = first + len(events) - 1 if events else 0
    return {
        "opened": conversation.first(a.AgentSessionOpened),
        "sums": conversation.sums(),
        "entries": conversation.entries(events),
        "count": count,
        "first": first,
        "last": last,
        "earlier": events[0].position if first > 1 else None,
        "later": events[-1].position if events and last < count else None,
        "types": ",".join(_FACTS),
    }
