"""What an agent did inside an attempt: its tool calls, what it asked permission for, and the models it called.

What an agent says is not ours, so nothing in its facts stops a fold:

* A fact of another attempt than the one that runs makes and changes no row.
* The end of a call that never began, or the decision of a request that nobody made, changes nothing.
* Where an id begins again while it is open, nobody will say what became of the first: it is left as if its attempt
  had ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeVar

from ttasks.events.agent_facts import (
    AgentAborted,
    AgentAnswered,
    AgentErred,
    AgentFact,
    AgentPrompted,
    AgentSessionOpened,
    AgentTurnEnded,
    FileEdit,
    Json,
    ModelCalled,
    PermissionDecided,
    PermissionRequested,
    ToolCallEnded,
    ToolCallStarted,
)
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact
from ttasks.state.record import evolve, made

AGENT_REPORTS: Final = (
    AgentPrompted,
    AgentAnswered,
    ToolCallStarted,
    ToolCallEnded,
    PermissionRequested,
    PermissionDecided,
    ModelCalled,
    AgentErred,
    AgentAborted,
)
"""Those that change nothing of a task and its attempts but the version."""
AGENT_FACTS: Final = (AgentSessionOpened, *AGENT_REPORTS, AgentTurnEnded)


@dataclass(frozen=True)
class ToolCallState:
    """One call of a tool, and its row in `tool_calls`. `position` is that of its ToolCallStarted.

    `status` is ``running``, then how it ended; ``unknown``: its attempt ended, in whatever way, while it ran.
    `end_position` is that of its ToolCallEnded, which holds what the tool gave out. `duration` is in seconds, from
    `started_at` to `finished_at`. `error` is a tail where `error_length`, the characters of the whole, is not None.
    """

    position: int
    task_id: str
    attempt: int
    call: str
    tool: str
    status: Literal["running", "succeeded", "failed", "denied", "aborted", "unknown"]
    started_at: datetime
    arguments: Json = None
    server: str | None = None
    parent: str | None = None
    agent: str | None = None
    finished_at: datetime | None = None
    duration: float | None = None
    exit_code: int | None = None
    error: str | None = None
    error_length: int | None = None
    files: tuple[FileEdit, ...] | None = None
    end_position: int | None = None


@dataclass(frozen=True)
class PermissionState:
    """One request for permission, and its row in `permissions`. `position` is that of its PermissionRequested.

    `decision` is None while nobody decided; ``unanswered``: its attempt ended, in whatever way, before anybody did.
    """

    position: int
    task_id: str
    attempt: int
    request: str
    kind: str
    subject: str
    requested_at: datetime
    call: str | None = None
    intention: str | None = None
    agent: str | None = None
    decision: Literal["approved", "denied", "unanswered"] | None = None
    decided_by: str | None = None
    feedback: str | None = None
    decided_at: datetime | None = None


@dataclass(frozen=True)
class ModelCallState:
    """One call of a model, and its row in `model_calls`. `position` is that of its ModelCalled, whose fields it has."""

    position: int
    task_id: str
    attempt: int
    model: str
    called_at: datetime
    agent: str | None = None
    call: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    duration: float | None = None
    multiplier: float | None = None
    nano_aiu: float | None = None
    initiator: str | None = None
    finish_reason: str | None = None


AgentState = ToolCallState | PermissionState | ModelCallState
_State = TypeVar("_State", ToolCallState, PermissionState, ModelCallState)


def _call_started(fact: ToolCallStarted, *, task_id: str, position: int) -> ToolCallState:
    return ToolCallState(
        position=position,
        task_id=task_id,
        attempt=fact.attempt,
        call=fact.call,
        tool=fact.tool,
        status="running",
        started_at=fact.at,
        arguments=fact.arguments,
        server=fact.server,
        parent=fact.parent,
        agent=fact.agent,
    )


def _call_ended(call: ToolCallState, fact: ToolCallEnded, *, position: int) -> ToolCallState:
    return evolve(
        call,
        status=fact.outcome,
        finished_at=fact.at,
        duration=(fact.at - call.started_at).total_seconds(),
        exit_code=fact.exit_code,
        error=fact.error,
        files=fact.files,
        end_position=position,
    )


def _requested(fact: PermissionRequested, *, task_id: str, position: int) -> PermissionState:
    return PermissionState(
        position=position,
        task_id=task_id,
        attempt=fact.attempt,
        request=fact.request,
        kind=fact.kind,
        subject=fact.subject,
        requested_at=fact.at,
        call=fact.call,
        intention=fact.intention,
        agent=fact.agent,
    )


def _decided(request: PermissionState, fact: PermissionDecided) -> PermissionState:
    return evolve(request, decision=fact.decision, decided_by=fact.by, feedback=fact.feedback, decided_at=fact.at)


def _model_called(fact: ModelCalled, *, task_id: str, position: int) -> ModelCallState:
    said = dict(vars(fact))
    return made(ModelCallState, position=position, task_id=task_id, called_at=said.pop("at"), **said)


class Conversation:
    """What a task's agent has begun and not ended, and the states that changed since they were last taken.

    `calls` and `requests` are those that are open in `attempt`, the one that runs (None: none).
    """

    def __init__(
        self,
        task_id: str,
        attempt: int | None = None,
        calls: Iterable[ToolCallState] = (),
        requests: Iterable[PermissionState] = (),
    ) -> None:
        self._task_id = task_id
        self._attempt = attempt
        self._calls = {call.call: call for call in calls}
        self._requests = {request.request: request for request in requests}
        self._changed: dict[int, AgentState] = {}

    def copy(self) -> Conversation:
        """Return a conversation that goes on from here and leaves this one as it is."""
        copy = Conversation(self._task_id, self._attempt)
        copy._calls, copy._requests, copy._changed = self._calls.copy(), self._requests.copy(), self._changed.copy()
        return copy

    def apply(self, fact: Fact | OpaqueEvent, *, running: int | None, position: int) -> None:
        """Add one fact of the task's stream; `running` is the attempt that runs after it."""
        if running != self._attempt:
            self._leave(*self._calls.values(), *self._requests.values())
            self._calls.clear()
            self._requests.clear()
            self._attempt = running
        if isinstance(fact, AgentFact) and fact.attempt == running:
            self._add(fact, position)

    def take(self) -> list[AgentState]:
        """Return the states that changed since the last time, each as it is now."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def _add(self, fact: AgentFact, position: int) -> None:
        if isinstance(fact, ToolCallStarted):
            if fact.call in self._calls:
                self._leave(self._calls[fact.call])
            self._calls[fact.call] = self._note(_call_started(fact, task_id=self._task_id, position=position))
        elif isinstance(fact, ToolCallEnded):
            call = self._calls.pop(fact.call, None)
            if call is not None:
                self._note(_call_ended(call, fact, position=position))
        elif isinstance(fact, PermissionRequested):
            if fact.request in self._requests:
                self._leave(self._requests[fact.request])
            self._requests[fact.request] = self._note(_requested(fact, task_id=self._task_id, position=position))
        elif isinstance(fact, PermissionDecided):
            request = self._requests.pop(fact.request, None)
            if request is not None:
                self._note(_decided(request, fact))
        elif isinstance(fact, ModelCalled):
            self._note(_model_called(fact, task_id=self._task_id, position=position))

    def _leave(self, *states: ToolCallState | PermissionState) -> None:
        """Take note that nobody will say what becomes of these."""
        for state in states:
            if isinstance(state, ToolCallState):
                self._note(evolve(state, status="unknown"))
            else:
                self._note(evolve(state, decision="unanswered"))

    def _note(self, state: _State) -> _State:
        self._changed[state.position] = state
        return state
