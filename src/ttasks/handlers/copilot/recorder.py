"""What the SDK says of a turn, as facts: the flight recorder's ear. It decides nothing."""

from __future__ import annotations

import json
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
        self._streamed: dict[str, str] = {}
        self._is_line_open = False
        self._calls: dict[str, str] = {}
        self._asked: dict[int, Any] = {}
        self._decided: dict[str, Decision] = {}
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
        """Record a fact, soon."""
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

    # --- messages ----------------------------------------------------------------------------------------------------

    def _prompt(self, event: SessionEvent, _: Any) -> None:
        self.has_begun = self.has_begun or not event.agent_id

    def _delta(self, event: SessionEvent, data: Any) -> None:
        if event.agent_id or not data.delta_content:
            return
        if data.message_id not in self._streamed:
            self._end_line()
        self._streamed[data.message_id] = self._streamed.get(data.message_id, "") + data.delta_content
        self._print(data.delta_content)

    def _message(self, event: SessionEvent, data: Any) -> None:
        text = data.content or ""
        streamed = self._streamed.pop(data.message_id, "")
        if text:
            self.report(AgentAnswered(self._number, _at(event), text, False, data.model, event.agent_id or None))
        if event.agent_id:
            return
        if text and not streamed:
            self._end_line()
            self._print(text)
        self.answer = text or self.answer

    def _print(self, text: str) -> None:
        self._port.printed("stdout", text)
        self._is_line_open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._is_line_open:
            self._print("\n")

    # --- tools -------------------------------------------------------------------------------------------------------

    def _tool_started(self, event: SessionEvent, data: Any) -> None:
        self._calls[data.tool_call_id] = data.tool_name
        self.report(
            ToolCallStarted(
                self._number,
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
                self._number,
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
        self.report(
            PermissionRequested(
                self._number,
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
        )

    def decided(self, name: str, decision: Decision) -> None:
        """Record a decision; only after that may the agent hear of it.

        Raises:
            LedgerUnwritableError: it could not be recorded.
        """
        self._decided[name] = decision
        fact = PermissionDecided(self._number, clock.now(), name, decision.word, decision.by, decision.feedback)
        self._port.report(fact, at_once=True)

    def _permission_completed(self, event: SessionEvent, data: Any) -> None:
        """Record what the agent's own policy made of a request, where that is not what was decided here."""
        kind = _word(data.result.kind)
        is_approved = kind.startswith("approved")
        ours = self._decided.get(data.request_id)
        if ours is None or (ours.is_approved and not is_approved):
            word: Literal["approved", "denied"] = "approved" if is_approved else "denied"
            self.report(PermissionDecided(self._number, _at(event), data.request_id, word, f"copilot: {kind}"))

    # --- models, errors, the end -------------------------------------------------------------------------------------

    def _usage(self, event: SessionEvent, data: Any) -> None:
        usage = data.copilot_usage
        self.report(
            ModelCalled(
                self._number,
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
        fact = AgentErred(self._number, _at(event), kind, message, True, data.status_code, event.agent_id or None)
        self.report(fact)

    def _error(self, event: SessionEvent, data: Any) -> None:
        kind, message = _word(data.error_type), data.message
        self.report(
            AgentErred(self._number, _at(event), kind, message, False, data.status_code, event.agent_id or None)
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
        self.report(AgentAborted(self._number, clock.now(), why))

    def ended(self, usage: Mapping[str, Any] | None) -> None:
        """Record what is left to say: what was begun and will not end any more, and what the turn came to."""
        now = clock.now()
        for text in self._streamed.values():
            self.report(AgentAnswered(self._number, now, text, True))
        for call in self._calls:
            self.report(ToolCallEnded(self._number, now, call, "aborted"))
        if usage is not None:
            self.report(AgentTurnEnded(self._number, now, **usage))
        self._port.finished_printing()

    @property
    def _number(self) -> int:
        return self._port.number


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
