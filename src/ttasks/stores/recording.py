"""Handles into batches and back: what several handles want recorded, in one append."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import Fact, TaskCancelRequested
from ttasks.log.event_log import EventLog
from ttasks.log.redaction import Redaction
from ttasks.log.secrets import redaction_of
from ttasks.log.transaction import Batch, Owned, OwnedRun
from ttasks.model.graph import GraphProposal, TaskGraph
from ttasks.model.task import Proposal, Task
from ttasks.model.task_view import Keeper
from ttasks.reentrance import section


@dataclass(eq=False, slots=True)
class Entry:
    """What to record of one handle: its pending facts, then `facts`.

    `owned` replaces what the handle itself expects of its stream, for the own facts of an attempt or a run. `cause` is
    a position, or an earlier entry of the same recording. `deleted` is the version at which its stream ends with its
    deletion: it comes back, whatever the handle has seen. `is_alone`: what the handle has pending is left for later.
    `keeper`: from this start on, the task belongs to the ledger of this execution until that lets go of it.
    """

    handle: Task | TaskGraph
    facts: Sequence[Fact] = ()
    owned: Owned | OwnedRun | None = None
    cause: int | Entry | None = None
    deleted: int | None = None
    is_alone: bool = False
    keeper: Keeper | None = None


def record(log: EventLog, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
    """Append what the entries' handles want recorded: all of it, or none; then the handles show it as recorded.

    Returns:
        For each entry the events of its own `facts`.

    Raises:
        StreamConflictError, TransitionError, LedgerUnwritableError: as `EventLog.append`. Nothing was written.
    """
    if len(entries) == 1:
        with section(), entries[0].handle._recording:
            return _record(log, entries)
    with section(), contextlib.ExitStack() as held:
        # In one order everywhere, so that nobody waits for a handle while another waits for theirs.
        for handle in sorted((entry.handle for entry in entries), key=attrgetter("id")):
            held.enter_context(handle._recording)
        return _record(log, entries)


def _record(log: EventLog, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
    batches: list[Batch] = []
    of_entry: dict[int, Batch] = {}
    proposals: list[tuple[Entry, Proposal | GraphProposal, Batch | None]] = []
    for entry in entries:
        proposal = _proposal(entry, log)
        batch = _batch(entry, proposal, of_entry, log.redaction)
        if batch.facts:
            batches.append(batch)
            of_entry[id(entry)] = batch
        proposals.append((entry, proposal, batch if batch.facts else None))
    if not batches:
        return [[] for _ in entries]
    appended = iter(log.append(*batches))
    events: list[list[RecordedEvent]] = []
    for entry, proposal, made in proposals:
        if made is None:
            events.append([])
            continue
        done = next(appended)
        if entry.keeper is not None and isinstance(entry.handle, Task):
            entry.handle._keep_for(entry.keeper)
        _tell(log, entry.handle, proposal, made, done.state)
        events.append(done.records[len(done.records) - len(entry.facts) :])
    return events


def _proposal(entry: Entry, log: EventLog) -> Proposal | GraphProposal:
    handle = entry.handle
    if entry.deleted is not None:
        state = log.readers.task(handle.id) if isinstance(handle, Task) else None
        if isinstance(handle, Task) and state is not None and state.is_owned and not handle._is_kept_from(log.ledger):
            return handle._revive(log.ledger, state, log.readers)
        return handle._reimport(entry.deleted)
    if entry.is_alone:
        return GraphProposal((), handle._seen.get(log.ledger, 0))
    return handle._proposal(log.ledger)


def _batch(
    entry: Entry, proposal: Proposal | GraphProposal, of_entry: dict[int, Batch], base: Redaction | None
) -> Batch:
    kind = "task" if isinstance(entry.handle, Task) else "graph"
    cause = of_entry.get(id(entry.cause)) if isinstance(entry.cause, Entry) else entry.cause
    expected: int | Owned | OwnedRun | None = entry.owned if entry.owned is not None else proposal.expected
    if not entry.facts and all(isinstance(fact, TaskCancelRequested) for fact in proposal.facts):
        expected = None  # a request conflicts with nothing
    elif isinstance(proposal, Proposal) and proposal.mirrored_attempt is not None:
        # Others may have asked for a cancel here: the snapshot comes from where that is heard.
        expected = Owned(proposal.mirrored_attempt, knows_cancel=True)
    redaction = redaction_of(base, entry.handle._given.secrets) if isinstance(entry.handle, Task) else base
    return Batch(f"{kind}-{entry.handle.id}", [*proposal.facts, *entry.facts], expected, cause, redaction)


def _tell(
    log: EventLog, handle: Task | TaskGraph, proposal: Proposal | GraphProposal, batch: Batch, state: object
) -> None:
    if isinstance(handle, Task) and isinstance(proposal, Proposal):
        redact = batch.redaction.text if batch.redaction is not None else None
        handle._committed(log.ledger, state, proposal.pending, log.readers, redact, proposal.view)  # type: ignore[arg-type]
        _listen(log, handle, batch.stream)
    elif isinstance(handle, TaskGraph) and isinstance(proposal, GraphProposal):
        handle._committed(log.ledger, state, proposal)  # type: ignore[arg-type]


def _listen(log: EventLog, task: Task, stream: str) -> None:
    """Let a cancel that is recorded beside the snapshot of a running task reach the runner of the task."""
    with task._lock:  # until it is let go, what runs it is its last keeper
        heard = task._on_cancel
        if heard is None or not task._is_kept_from(log.ledger) or log.ledger in task._keepers[-1].mirrors:
            return
        task._keepers[-1].mirrors[log.ledger] = partial(log.unwatch, stream)
        log.watch(stream, heard)


def catch_up(log: EventLog, task: Task) -> list[RecordedEvent]:
    """Let the handle show what the ledger has of it, though nobody told it (Ctrl-C came in between).

    Only for what this process alone may record: facts of its own attempt. Returns the events that the handle had not
    seen, oldest first.
    """
    with section(), task._recording:
        seen, pending = task._seen.get(log.ledger, 0), tuple(task._pending)
        events = [event for event in log.readers.events(stream=f"task-{task.id}") if event.version > seen]
        state = log.readers.task(task.id) if events else None
        if state is not None:
            task._committed(log.ledger, state, pending, log.readers)
        return events
