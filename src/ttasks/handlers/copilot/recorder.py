"""What the SDK says of a turn, as facts: the flight recorder's ear. It decides nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from ttasks import clock
from ttasks.errors import CopilotError
from ttasks.events.agent_facts import (
    AgentAborted,
    AgentAnswered,
    AgentErred,
    AgentFact,
    AgentTurnEnded,
    FileEdit,
    ModelCalled,
    PermissionDecided,
    PermissionRequested,
    ToolCallEnded,
    ToolCallStarted,
)
from ttasks.handlers.context import AttemptPort
from ttasks.handlers.copilot.failures import refused
from ttasks.handlers.copilot.permissions import Decision, PermissionRequest

if TYPE_CHECKING:
    from copilot.session_events import SessionEvent

PRINT_EVERY_S: Final = 0.05
"""How long what streams in is kept for what follows: else each of its words would be recorded, with its time."""
NOTE_CHARACTERS: Final = 120
"""How much of a tool's arguments is told as progress."""
_SUBJECTS: Final = ("full_command_text", "file_name", "path", "url", "tool_name", "name", "fact", "extension_name")
"""Where a request says what it is about, by the kinds that there are."""
Outcome = Literal["succeeded", "failed", "denied", "aborted"]


class Recorder:
    """Turns the events of one turn into facts of one attempt.

    `answer` is the agent's latest message, `refusal` what ended the turn instead, `is_over` whether the turn has ended
    by itself, `is_aborted` whether the agent says that it was ended.
    """

    def __init__(self, port: AttemptPort, task_id: str, working_directory: str, provider: str | None) -> None:
        self._port = port
        self._task_id = task_id
        self._working_directory = working_directory
        self._provider = provider
        self._streamed: dict[str, list[str]] = {}
        self._unprinted: list[str] = []
        self._is_print_due = False
        self._print_lock = threading.RLock()
        self._is_line_open = False
        self._calls: dict[str, str] = {}
        self._asked: dict[int, Any] = {}
        self._decided: dict[str, Decision] = {}
        self._told_of: dict[str, str] = {}
        self._unnamed = 0
        self.has_begun = False
        self.is_over = False
        self.is_aborted = False
        self.answer = ""
        self.refusal: CopilotError | None = None
        self._takers: Mapping[str, Callable[[SessionEvent, Any], None]] = {
            "user.message": self._prompt,
            "assistant.message_delta": self._delta,
            "assistant.message": self._message,
            "assistant.usage": self._usage,
            "tool.execution_start": self._tool_started,
            "tool.execution_complete": self._tool_ended,
            "permission.requested": self._permission_requested,
            "permission.completed": self._permission_completed,
            "model.call_failure": self._call_failed,
            "session.error": self._error,
            "session.idle": self._idle,
        }

    def take(self, event: SessionEvent) -> None:
        """Take one event of the conversation, on the loop's thread."""
        taker = self._takers.get(event.type.value)
        if taker is not None:
            taker(event, event.data)

    def report(self, fact: AgentFact) -> None:
        """Record a fact, soon, after what was printed before it."""
        self._print_now()
        self._port.report(fact)

    def check(self) -> None:
        """Raise what a fact that was reported could not be recorded for."""
        self._port.check()

    def begin(self, prompt: AgentFact) -> None:
        """Record that the turn begins. Only after that may the prompt be sent.

        Raises:
            LedgerUnwritableError: it could not be recorded.
        """
        self._port.report(prompt, at_once=True)

    def tell(self, message: str) -> None:
        """Tell subscribers how far it is."""
        self._port.tell(message)

    @property
    def attempt(self) -> int:
        """The number of the attempt."""
        return self._port.number

    # --- messages ----------------------------------------------------------------------------------------------------

    def _prompt(self, event: SessionEvent, _: Any) -> None:
        self.has_begun = self.has_begun or not event.agent_id

    def _delta(self, event: SessionEvent, data: Any) -> None:
        if event.agent_id or not data.delta_content:
            return
        if data.message_id not in self._streamed:
            self._end_line()
        self._streamed.setdefault(data.message_id, []).append(data.delta_content)
        self._print(data.delta_content)

    def _message(self, event: SessionEvent, data: Any) -> None:
        text = data.content or ""
        streamed = self._streamed.pop(data.message_id, [])
        if text:
            self.report(AgentAnswered(self.attempt, _at(event), text, False, data.model, event.agent_id or None))
        if event.agent_id:
            return
        if text and not streamed:
            self._end_line()
            self._print(text)
        self.answer = text or self.answer

    def _print(self, text: str) -> None:
        self._is_line_open = not text.endswith("\n")
        with self._print_lock:
            self._unprinted.append(text)
            is_due, self._is_print_due = self._is_print_due, True
        if not is_due:
            asyncio.get_running_loop().call_later(PRINT_EVERY_S, self._print_due)

    def _print_due(self) -> None:
        self._is_print_due = False
        self._print_now()

    def _print_now(self) -> None:
        with self._print_lock:
            text = "".join(self._unprinted)
            self._unprinted.clear()
            if text:
                self._port.printed("stdout", text)

    def _end_line(self) -> None:
        if self._is_line_open:
            self._print("\n")

    # --- tools -------------------------------------------------------------------------------------------------------

    def _tool_started(self, event: SessionEvent, data: Any) -> None:
        self._calls[data.tool_call_id] = data.tool_name
        self.report(
            ToolCallStarted(
                self.attempt,
                _at(event),
                data.tool_call_id,
                data.tool_name,
                _json(data.arguments),
                data.mcp_server_name,
                data.parent_tool_call_id,
                event.agent_id or None,
            )
        )
        self._port.tell(_note(data.tool_name, data.arguments))

    def _tool_ended(self, event: SessionEvent, data: Any) -> None:
        self._calls.pop(data.tool_call_id, None)
        shell = data.shell_execution
        code = shell.exit_code if shell is not None else None
        outcome: Outcome = "succeeded"
        if data.error is not None and getattr(data.error, "code", None) in ("denied", "rejected"):
            outcome = "denied"
        elif not data.success or code:
            outcome = "failed"
        edits = tuple(FileEdit(str(edit.path), _word(edit.kind)) for edit in data.file_edits or ())
        self.report(
            ToolCallEnded(
                self.attempt,
                _at(event),
                data.tool_call_id,
                outcome,
                code,
                data.result.content if data.result is not None else None,
                data.error.message if data.error is not None else None,
                edits or None,
            )
        )

    # --- permissions -------------------------------------------------------------------------------------------------

    def _permission_requested(self, event: SessionEvent, data: Any) -> None:
        # The SDK gives what decides the very same object, but not the id that the agent knows the request by.
        self._asked[id(data.permission_request)] = data
        self._request(data.request_id, data.permission_request, _at(event), event.agent_id or None)

    def _request(self, name: str, request: Any, at: datetime, agent: str | None) -> None:
        self._told_of[name] = _note(_word(request.kind), _subject(request))
        self.report(
            PermissionRequested(
                self.attempt,
                at,
                name,
                _word(request.kind),
                _subject(request),
                getattr(request, "intention", None),
                getattr(request, "tool_call_id", None),
                agent,
            )
        )

    def name_of(self, request: Any) -> str:
        """Return the id of a request that has to be decided; one that was not announced is recorded now."""
        asked = self._asked.get(id(request))
        if asked is not None:
            return str(asked.request_id)
        self._unnamed += 1
        name = f"unnamed-{self._unnamed}"
        self._request(name, request, clock.now(), None)
        return name

    def asks(self, request: Any) -> PermissionRequest:
        """Return a request in the form in which it is decided."""
        subject = _subject(request)
        paths = [getattr(request, "file_name", None), getattr(request, "path", None)]
        for edit in getattr(request, "file_edits", None) or ():
            paths += [getattr(getattr(edit, side, None), "path", None) for side in ("before", "after")]
        return PermissionRequest(
            task_id=self._task_id,
            kind=_word(request.kind),
            subject=subject,
            working_directory=self._working_directory,
            intention=getattr(request, "intention", None),
            paths=tuple(dict.fromkeys(path for path in paths if path)),
            arguments=_json(getattr(request, "args", None)),
            leaves_sandbox=bool(getattr(request, "request_sandbox_bypass", None)),
        )

    def decided(self, name: str, decision: Decision) -> None:
        """Record a decision; only after that may the agent hear of it.

        Raises:
            LedgerUnwritableError: it could not be recorded.
        """
        self._decided[name] = decision
        fact = PermissionDecided(self.attempt, clock.now(), name, decision.word, decision.by, decision.feedback)
        self._port.report(fact, at_once=True)
        if not decision.is_approved:
            self._port.tell(f"denied ({decision.by}): {self._told_of.get(name, 'what it asked for')}")

    def _permission_completed(self, event: SessionEvent, data: Any) -> None:
        """Record what the agent's own policy made of a request, where that is not what was decided here."""
        kind = _word(data.result.kind)
        is_approved = kind.startswith("approved")
        ours = self._decided.get(data.request_id)
        if ours is None or (ours.is_approved and not is_approved):
            word: Literal["approved", "denied"] = "approved" if is_approved else "denied"
            self.report(PermissionDecided(self.attempt, _at(event), data.request_id, word, f"copilot: {kind}"))

    # --- models, errors, the end -------------------------------------------------------------------------------------

    def _usage(self, event: SessionEvent, data: Any) -> None:
        usage = data.copilot_usage
        self.report(
            ModelCalled(
                self.attempt,
                _at(event),
                data.model,
                data.input_tokens,
                data.output_tokens,
                data.cache_read_tokens,
                data.cache_write_tokens,
                data.reasoning_tokens,
                _seconds(data.duration),
                data.cost,
                getattr(usage, "total_nano_aiu", None),
                _word(data.initiator) if data.initiator is not None else None,
                _word(data.finish_reason) if data.finish_reason is not None else None,
                data.api_call_id,
                event.agent_id or None,
            )
        )

    def _call_failed(self, event: SessionEvent, data: Any) -> None:
        kind = _word(data.error_type or data.failure_kind or "model call")
        message = data.error_message or "a call of the model failed"
        fact = AgentErred(self.attempt, _at(event), kind, message, True, data.status_code, event.agent_id or None)
        self.report(fact)

    def _error(self, event: SessionEvent, data: Any) -> None:
        kind, message = _word(data.error_type), data.message
        self.report(
            AgentErred(self.attempt, _at(event), kind, message, False, data.status_code, event.agent_id or None)
        )
        if not event.agent_id:
            self.refusal = refused(kind, message, data.status_code, self._provider)
            self.is_over = True

    def _idle(self, event: SessionEvent, data: Any) -> None:
        # One that comes before our own prompt is the end of an earlier turn, which was aborted.
        if self.has_begun and not self.is_over and not event.agent_id:
            self.is_aborted = bool(data.aborted)
            self.is_over = True

    def aborted(self, why: str) -> None:
        """Record that the turn is ended before its time."""
        self.report(AgentAborted(self.attempt, clock.now(), why))

    def ended(self, usage: Mapping[str, Any] | None) -> None:
        """Record what is left to say: what was begun and will not end any more, and what the turn came to.

        Raises:
            LedgerError: not all of it could be recorded.
            RuntimeError: the attempt has ended.
        """
        now, refusal = clock.now(), None
        facts: list[AgentFact] = [
            *(AgentAnswered(self.attempt, now, "".join(parts), True) for parts in self._streamed.values()),
            *(ToolCallEnded(self.attempt, now, call, "aborted") for call in self._calls),
        ]
        if usage is not None:
            facts.append(AgentTurnEnded(self.attempt, now, **usage))
        self._print_now()
        for fact in facts:
            try:
                self._port.report(fact)
            except RuntimeError as error:  # what the ledger refuses now may be recorded with the attempt's end
                refusal = refusal or error
        self._port.finished_printing()
        if refusal is not None:
            raise refusal


def totals_of(metrics: Any) -> dict[str, Any]:
    """Return the totals of a session as the fields of an AgentTurnEnded."""
    models = list((metrics.model_metrics or {}).values())
    has_credits = any(_word(getattr(model, "ai_credits_status", None)) != "unavailable" for model in models)
    changes = metrics.code_changes
    return {
        "model_calls": sum(int(model.requests.count or 0) for model in models),
        "input_tokens": sum(int(model.usage.input_tokens or 0) for model in models),
        "output_tokens": sum(int(model.usage.output_tokens or 0) for model in models),
        "cache_read_tokens": sum(int(model.usage.cache_read_tokens or 0) for model in models),
        "cache_write_tokens": sum(int(model.usage.cache_write_tokens or 0) for model in models),
        "premium_requests": metrics.total_premium_request_cost,
        "nano_aiu": metrics.total_nano_aiu if has_credits else None,
        "requests": metrics.total_user_requests,
        "lines_added": getattr(changes, "lines_added", None),
        "lines_removed": getattr(changes, "lines_removed", None),
    }


def _at(event: SessionEvent) -> datetime:
    moment: object = event.timestamp
    return clock.aware(moment, UTC) if isinstance(moment, datetime) else clock.now()


def _word(value: Any) -> str:
    """Return an enumerated value of the SDK's, which may be a text as well, in the agent's word."""
    return str(getattr(value, "value", value))


def _seconds(value: Any) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else None


def _subject(request: Any) -> str:
    names = (getattr(request, name, None) for name in _SUBJECTS)
    subject = next((str(name) for name in names if name), "")
    server = getattr(request, "server_name", None)
    return f"{server}/{subject}" if server else subject


def _json(value: Any) -> Any:
    """Return a value as JSON has it; what it has no form for, and numbers that it lacks, as their texts."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return json.loads(json.dumps(value, default=str), parse_constant=str)
    except (TypeError, ValueError):
        return str(value)


def _note(tool: str, arguments: Any) -> str:
    told = arguments
    if isinstance(arguments, Mapping):
        known = (arguments.get(name) for name in ("command", "path", "url", "pattern", "query", "description"))
        told = next((value for value in known if isinstance(value, str)), None)
    line = " ".join(told.split()) if isinstance(told, str) else ""
    cut = line if len(line) <= NOTE_CHARACTERS else f"{line[: NOTE_CHARACTERS - 1]}…"
    return f"{tool}: {cut}" if cut else tool
