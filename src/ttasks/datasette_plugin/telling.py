"""What an event says, in a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ttasks import display
from ttasks.events import agent_facts as a
from ttasks.events import facts as f
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact
from ttasks.log.reading import UNREADABLE
from ttasks.state.exits import exit_text, why

CHARACTERS_MAX: Final = 200


def told(fact: Fact | OpaqueEvent) -> str:
    """Return what `fact` says in one line, harmless; empty where its type says it all."""
    tell = _TOLD.get(type(fact))
    try:
        text = tell(fact) if tell is not None else ""
    except UNREADABLE:
        return "what it says can't be read"  # what it holds is not what ttasks would have written
    return display.printable(text if len(text) <= CHARACTERS_MAX else text[:CHARACTERS_MAX] + "…")


def _all(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _ended(fact: Any) -> str:
    error = why(fact.error, None, None)[:CHARACTERS_MAX]
    return _all(
        f"attempt {fact.attempt}" if fact.attempt is not None else "set by hand",
        f"after {display.duration(fact.duration)}" if fact.duration is not None else None,
        exit_text(fact.returncode, fact.reason) if fact.returncode is not None else None,
        f"because of {fact.reason}" if fact.reason and fact.reason != "exit_code" else None,
        fact.error_code if fact.error_code != fact.reason else None,
        f"by {fact.by}" if getattr(fact, "by", None) else None,
        error,
    )


def _started(fact: f.TaskStarted) -> str:
    if fact.attempt is None:
        return "set by hand"
    return _all(
        f"attempt {fact.attempt}",
        f"retry {fact.retry}" if fact.retry else None,
        f"in run {fact.run}" if fact.run is not None else None,
        f"by {fact.handler}" if fact.handler else None,
    )


def _printed(fact: f.TaskOutput) -> str:
    characters = sum(len(text) for _, _, text in fact.chunks)
    return _all(f"attempt {fact.attempt}", display.count(characters, "character"))


def _progressed(fact: f.TaskProgressed) -> str:
    return _all(f"{fact.percent:g} %" if fact.percent is not None else None, fact.message)


def _resumed(fact: f.GraphRunResumed) -> str:
    return _all(f"run {fact.run}", f"by {fact.by}", "finally tasks only" if fact.finally_only else None)


def _described(fact: f.RunnerDescribed) -> str:
    changes = " with changes" if fact.git_dirty else ""
    return _all(fact.git_root, fact.git_branch, f"commit {fact.git_commit}{changes}" if fact.git_commit else None)


def _opened(fact: a.AgentSessionOpened) -> str:
    return _all(
        f"attempt {fact.attempt}",
        f"session {fact.session}",
        "taken up again" if fact.is_resumed else None,
        display.agent_of(fact),
        display.model_of(fact),
        display.through(fact),
        f"permissions: {', '.join(fact.permissions) or 'none'}" if fact.permissions is not None else None,
    )


def _of(fact: Any) -> str | None:
    """Return which sub-agent a fact is about."""
    return f"sub-agent {fact.agent}" if fact.agent else None


def _answered(fact: a.AgentAnswered) -> str:
    said = _one_line(fact.text)
    return ": ".join(filter(None, (_all(_of(fact), "the rest never came" if fact.is_partial else None), said)))


def _call_started(fact: a.ToolCallStarted) -> str:
    tool = f"{fact.server}/{fact.tool}" if fact.server else fact.tool
    return ": ".join(filter(None, (_all(_of(fact), tool), _one_line(display.called_for(fact.arguments)))))


def _call_ended(fact: a.ToolCallEnded) -> str:
    return _all(
        fact.outcome,
        f"exit code {fact.exit_code}" if fact.exit_code is not None else None,
        display.files_changed(fact.files),
        _one_line(fact.error or ""),
    )


def _decided(fact: a.PermissionDecided) -> str:
    return f"{fact.decision} by {fact.by}{': ' + _one_line(fact.feedback) if fact.feedback else ''}"


def _model_called(fact: a.ModelCalled) -> str:
    return _all(
        _of(fact),
        fact.model,
        display.tokens(fact.input_tokens, fact.output_tokens, fact.cache_read_tokens),
        f"after {display.duration(fact.duration)}" if fact.duration is not None else None,
        display.cost(None, fact.nano_aiu),
    )


def _erred(fact: a.AgentErred) -> str:
    code = f"status {fact.status_code}" if fact.status_code is not None else None
    return f"{_all(_of(fact), fact.kind, code, 'tries again' if fact.is_retried else None)}: {_one_line(fact.message)}"


def _turn_ended(fact: a.AgentTurnEnded) -> str:
    return _all(
        display.count(fact.model_calls, "model call") if fact.model_calls is not None else None,
        display.tokens(fact.input_tokens, fact.output_tokens, fact.cache_read_tokens),
        display.cost(fact.premium_requests, fact.nano_aiu),
        display.lines_changed(fact.lines_added, fact.lines_removed),
    )


def _one_line(text: str) -> str:
    return " ".join(text[: CHARACTERS_MAX * 4].split())


_TOLD: Final[Mapping[type, Callable[[Any], str]]] = {
    f.TaskCreated: lambda fact: _all(fact.type, fact.title),
    f.TaskRevised: lambda fact: ", ".join(fact.changes),
    f.TaskStarted: _started,
    f.ProcessSpawned: lambda fact: f"attempt {fact.attempt}, process {fact.pid}",
    f.TaskProgressed: _progressed,
    f.TaskOutput: _printed,
    f.TaskRetryScheduled: lambda fact: (
        f"retry {fact.retry} is to follow {display.duration(fact.delay)} after attempt {fact.attempt}"
    ),
    f.TaskCancelRequested: lambda fact: f"by {fact.by}",
    f.TaskSucceeded: _ended,
    f.TaskFailed: _ended,
    f.TaskCancelled: _ended,
    f.TaskInterrupted: _ended,
    f.TaskBlocked: lambda fact: f"by task {fact.blocked_by}" if fact.blocked_by else "set by hand",
    f.ProcessReaped: lambda fact: (
        f"attempt {fact.attempt}, {', '.join(map(str, fact.pids))} by {fact.signal}: {fact.why}"
    ),
    f.TaskResolved: lambda fact: f"as {fact.answer}, by {fact.by}{': ' + fact.note if fact.note else ''}",
    f.TaskImported: lambda fact: f"from ledger {fact.ledger}" if fact.ledger else "from no ledger",
    f.TaskDeleted: lambda fact: f"by {fact.by}",
    f.GraphCreated: lambda fact: _all(fact.title, display.count(len(fact.members), "task")),
    f.GraphRevised: lambda fact: _all(fact.title, display.count(len(fact.members), "task")),
    f.GraphRunStarted: lambda fact: f"run {fact.run}, {display.count(len(fact.tasks), 'task')}",
    f.GraphCancelRequested: lambda fact: f"by {fact.by}: {fact.why}",
    f.GraphRunFinished: lambda fact: f"run {fact.run}, {fact.outcome}",
    f.GraphRunInterrupted: lambda fact: f"run {fact.run}: {fact.why}",
    f.GraphRunResumed: _resumed,
    f.GraphDeleted: lambda fact: f"by {fact.by}",
    f.RunnerStarted: lambda fact: f"{fact.user}@{fact.host}, process {fact.pid}",
    f.RunnerDescribed: _described,
    a.AgentSessionOpened: _opened,
    a.AgentPrompted: lambda fact: f"attempt {fact.attempt}: {_one_line(fact.prompt)}",
    a.AgentAnswered: _answered,
    a.ToolCallStarted: _call_started,
    a.ToolCallEnded: _call_ended,
    a.PermissionRequested: lambda fact: f"{_all(_of(fact), fact.kind)}: {_one_line(fact.subject)}",
    a.PermissionDecided: _decided,
    a.ModelCalled: _model_called,
    a.AgentErred: _erred,
    a.AgentAborted: lambda fact: f"attempt {fact.attempt} {fact.why}",
    a.AgentTurnEnded: _turn_ended,
    f.LedgerCreated: lambda fact: f"by ttasks {fact.ttasks_version}",
}
