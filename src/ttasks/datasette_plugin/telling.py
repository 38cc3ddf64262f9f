"""What an event says, in a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ttasks import display
from ttasks.events import facts as f
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact
from ttasks.log.reading import UNREADABLE

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
    error = (fact.error or "").strip().rsplit("\n", 1)[-1][:CHARACTERS_MAX]
    return _all(
        f"attempt {fact.attempt}" if fact.attempt is not None else "set by hand",
        f"after {display.duration(fact.duration)}" if fact.duration is not None else None,
        f"exit code {fact.returncode}" if fact.returncode is not None else None,
        f"because of {fact.reason}" if fact.reason and fact.reason != "exit_code" else None,
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
    f.LedgerCreated: lambda fact: f"by ttasks {fact.ttasks_version}",
}
