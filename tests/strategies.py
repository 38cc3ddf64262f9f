"""What hypothesis draws: hostile texts, facts of every type, and histories that a runner could have recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_type_hints

from hypothesis import strategies as st

from ttasks.events import agent_facts as a
from ttasks.events import facts as f
from ttasks.events.codec import to_json
from ttasks.events.facts import Fact, Member, RetrySpec
from ttasks.events.status import OnInterrupted, RunStatus, TaskStatus, TaskType
from ttasks.log.transaction import Batch
from ttasks.state import graph as graph_rules
from ttasks.state import task as task_rules
from ttasks.state.task import TaskState

HOSTILE = ("", "\0", "a\0b", "\ud800", "\udcff tail", "\ufffd", "\ufffd\0", '"\\u0000"', "😀\u2028\x85", "ö" * 3000)
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

texts = st.one_of(
    st.sampled_from(HOSTILE),
    # A high surrogate right before a low one is read back as the character that they make: documented, not drawn.
    st.text(st.characters(exclude_categories=()), max_size=20).filter(lambda text: not _PAIR.search(text)),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(0, 1e6)
times = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(
        datetime(1970, 1, 1),
        datetime(2200, 1, 1),
        timezones=st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
text_maps = st.dictionaries(texts, texts, max_size=3)
_CHUNKS = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), texts, texts), max_size=3).map(tuple)

retry_specs = st.builds(
    RetrySpec,
    max_attempts=st.integers(1, 9),
    backoff=seconds,
    factor=seconds,
    max_backoff=st.none() | seconds,
    jitter=seconds,
    retry_on=st.none() | st.lists(texts, max_size=2).map(tuple),
)
members = st.builds(
    Member,
    task=texts,
    after=st.lists(texts, max_size=3).map(tuple),
    is_finally=st.booleans(),
    is_required=st.booleans(),
    retry_policy=st.none() | retry_specs,
)

_BY_TYPE: Mapping[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: st.integers(-(2**63), 2**63 - 1),
    float: numbers,
    datetime: times,
    Member: members,
    RetrySpec: retry_specs,
    Mapping[str, str]: text_maps,
    Mapping[str, Any]: st.dictionaries(texts, json_values, max_size=3),
    Mapping[str, Mapping[str, str]]: st.dictionaries(texts, text_maps, max_size=3),
    tuple[f.Chunk, ...]: _CHUNKS,
    a.FileEdit: st.builds(a.FileEdit, texts, texts),
    a.Json: json_values,
}


def _of(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a declared type: what may be None also is."""
    if hint in _BY_TYPE:
        return _BY_TYPE[hint]
    if type(None) in getattr(hint, "__args__", ()):
        (known,) = (item for item in hint.__args__ if item is not type(None))
        return st.none() | _of(known)
    if getattr(hint, "__origin__", None) is tuple:
        if hint.__args__[-1] is Ellipsis:
            return st.lists(_of(hint.__args__[0]), max_size=3).map(tuple)
        return st.tuples(*map(_of, hint.__args__))
    return st.from_type(hint)


def facts_of(fact_type: type[Fact]) -> st.SearchStrategy[Fact]:
    """Return facts of one type, every field drawn from its declared type."""
    return records_of(fact_type)


def records_of(record: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return instances of a dataclass, every field drawn as `given` or else from its declared type."""
    hints = get_type_hints(record)
    drawn = {field.name: _of(hints[field.name]) for field in fields(record) if field.name not in given}
    return st.builds(record, **drawn, **given)


# --- histories -----------------------------------------------------------------------------------------------------

AT = datetime(2026, 11, 24, 8, tzinfo=UTC)
_ENDS = (f.TaskSucceeded, f.TaskFailed, f.TaskCancelled, f.TaskInterrupted)


def created(title: str = "a task", **changes: Any) -> f.TaskCreated:
    """Return the first fact of an ordinary task."""
    given = {"name": title, "type": TaskType.BASH, "payload": "true", "description": "", "created_at": AT}
    return f.TaskCreated(**{**given, "title": title, "on_interrupted": OnInterrupted.RERUN, **changes})


def started(attempt: int = 1, **changes: Any) -> f.TaskStarted:
    """Return the start of an attempt."""
    fields = {"handler": "tests.handler", "payload": "true", "started_at": AT, **changes}
    return f.TaskStarted(**fields, attempt=attempt)


def ended(fact_type: type[f.AttemptEnd], attempt: int | None = 1, **changes: Any) -> f.AttemptEnd:
    """Return the end of an attempt, with a result."""
    return fact_type(**{"started_at": AT, "finished_at": AT, "duration": 0.5, **changes}, attempt=attempt)


# Strategies are made once, because making them costs more than drawing from them: their facts speak of attempt 0, and
# `task_histories` puts in the one that is meant.


def _ends(*types: type[f.AttemptEnd], attempt: int | None = 0) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda fact_type, error, **values: ended(fact_type, attempt, error=error[0], error_length=error[1], **values),
        st.sampled_from(types),
        error=st.just((None, None)) | st.tuples(texts, st.none() | st.integers(0, 10**6)),
        duration=seconds,
        exception=st.none() | texts,
        returncode=st.none() | st.integers(-64, 255),
        reason=st.none() | st.sampled_from(["exit_code", "timeout", "cancelled", "handler", "interrupted"]),
    )


_REVISIONS = st.one_of(
    st.one_of(
        st.builds(lambda field, value: {field: value}, st.sampled_from(["title", "payload", "description"]), texts),
        st.builds(lambda error: {"error": error}, st.none() | texts),
        st.builds(lambda timeout: {"timeout": timeout}, st.none() | seconds),
    ).map(f.TaskRevised),
    st.builds(
        lambda field: f.TaskRevised({field: "***"}, redacted=(field,)),
        st.sampled_from(["title", "payload", "description"]),
    ),
)
_STARTS = st.builds(
    started,
    st.just(0),
    handler=texts,
    payload=texts,
    started_at=times,
    retry=st.integers(0, 5),
    timeout=st.none() | seconds,
    cwd=st.none() | texts,
    env=st.none() | text_maps,
    retry_policy=st.none() | retry_specs,
    run=st.none() | st.integers(1, 9),
)
_REQUESTS = st.builds(f.TaskCancelRequested, texts)
_RETRIES = st.builds(f.TaskRetryScheduled, st.just(0), st.integers(1, 9), seconds, times)

# Ids repeat, ends come without beginnings: what an agent says is not ours. Of few ids, so that many mean the same.
_FEW_IDS = st.sampled_from(["one", "two", "\0"])
_OF_AGENTS = st.one_of(
    [
        records_of(
            fact_type,
            attempt=st.sampled_from([0, 0, 0, 0, 1, 99]),
            **{name: _FEW_IDS for name in ("call", "request") if name in fact_type.__dataclass_fields__},
        )
        for fact_type in (
            *(a.ToolCallStarted, a.ToolCallStarted, a.ToolCallEnded, a.PermissionRequested, a.PermissionDecided),
            *(a.ModelCalled, a.AgentSessionOpened, a.AgentPrompted, a.AgentAnswered, a.AgentErred, a.AgentAborted),
            a.AgentTurnEnded,
        )
    ]
)
_WHILE_RUNNING = st.one_of(
    _OF_AGENTS,
    _OF_AGENTS,
    st.builds(f.ProcessSpawned, st.just(0), st.integers(1, 2**22), st.none() | st.just("ticks:77")),
    st.builds(f.TaskProgressed, st.just(0), times, st.none() | st.floats(0, 100), st.none() | texts),
    st.builds(f.TaskOutput, st.just(0), _CHUNKS),
    _REQUESTS,
    _ends(*_ENDS),
    _ends(*_ENDS),
    st.tuples(_ends(f.TaskFailed), _RETRIES),
)
_WHILE_WAITING_FOR_RETRY = st.one_of(_OF_AGENTS, _STARTS, _REQUESTS, _ends(f.TaskCancelled, attempt=None))
_WHILE_RUNNING_BY_HAND = st.sampled_from([*(end() for end in _ENDS), f.TaskFailed(error="by hand")])
_WHEN_SUCCEEDED = st.builds(f.TaskDeleted, texts)
_WHEN_CANCELLED = st.one_of(_REVISIONS, _WHEN_SUCCEEDED)
_WHEN_NOBODY_RUNS_IT = st.one_of(
    _WHEN_CANCELLED,
    _OF_AGENTS,
    _STARTS,
    _STARTS,
    st.just(f.TaskStarted()),
    st.builds(f.TaskCancelled, error=st.none() | texts),
)
_WHEN_PENDING = st.one_of(
    _WHEN_NOBODY_RUNS_IT,
    st.builds(f.TaskBlocked, st.none() | st.just("parent"), st.none() | texts),
    st.builds(f.TaskFailed, error=st.none() | texts),
)
_WHEN_INTERRUPTED = st.one_of(
    _WHEN_NOBODY_RUNS_IT,
    st.builds(f.ProcessReaped, st.just(0), st.just((7, 8)), texts, texts),
    st.tuples(st.builds(f.TaskResolved, st.just("succeeded"), texts), st.just(f.TaskSucceeded())),
    st.tuples(st.builds(f.TaskResolved, st.just("failed"), texts), st.just(f.TaskFailed())),
)
_BY_STATUS = {
    TaskStatus.PENDING: _WHEN_PENDING,
    TaskStatus.RUNNING: _WHILE_RUNNING_BY_HAND,
    TaskStatus.SUCCEEDED: _WHEN_SUCCEEDED,
    TaskStatus.FAILED: _WHEN_NOBODY_RUNS_IT,
    TaskStatus.CANCELLED: _WHEN_CANCELLED,
    TaskStatus.BLOCKED: _WHEN_NOBODY_RUNS_IT,
    TaskStatus.INTERRUPTED: _WHEN_INTERRUPTED,
}


def _what_can_follow(state: TaskState) -> st.SearchStrategy[Any]:
    if state.is_deleted:
        return st.just(_imported(state))
    if state.running_attempt is not None:
        return _WHILE_RUNNING
    if state.retry_due_at is not None:
        return _WHILE_WAITING_FOR_RETRY
    return _BY_STATUS[state.status]


def _of_attempt(fact: Any, state: TaskState) -> Any:
    """Return `fact` with the number of the attempt that it means, where it means one."""
    if getattr(fact, "attempt", None) != 0:
        return fact
    return replace(fact, attempt=state.attempts + isinstance(fact, f.TaskStarted))


def _imported(state: TaskState) -> f.TaskImported:
    """Return the import of what a task was, in JSON values."""
    return f.TaskImported(json.loads(to_json(task_rules.snapshot(state))))


_CREATED = st.builds(
    created,
    title=texts,
    payload=texts,
    description=texts,
    type=st.sampled_from(TaskType),
    created_at=times,
    on_interrupted=st.sampled_from(OnInterrupted),
    timeout=st.none() | seconds,
    cwd=st.none() | texts,
    env=st.none() | text_maps,
    error=st.none() | texts,
    redacted=st.none() | st.just(("payload",)) | st.just(("cwd", "title")),
    grace=st.none() | seconds,
    wait_for_output=st.none() | st.just(False),
)


@st.composite
def task_histories(draw: st.DrawFn, task_id: str = "t", max_events: int = 12) -> list[f.TaskFact]:
    """Return what a task's stream could hold: what `decide`, a runner and a person would record, in that order."""
    first: f.TaskFact = draw(_CREATED)
    facts = [first]
    state = task_rules.apply(None, first, task_id=task_id, version=1)
    for _ in range(draw(st.integers(0, max_events))):
        drawn = draw(_what_can_follow(state))
        for fact in drawn if isinstance(drawn, tuple) else (drawn,):
            facts.append(_of_attempt(fact, state))
            state = task_rules.apply(state, facts[-1], task_id=task_id, version=len(facts))
    return facts


def member(task: str, *after: str, is_finally: bool = False, is_required: bool = True) -> Member:
    """Return a task's place in a graph."""
    return Member(task, after, is_finally, is_required)


def graph_created(*members: Member, title: str = "a graph", **changes: Any) -> f.GraphCreated:
    """Return the first fact of an ordinary graph."""
    return f.GraphCreated(title, AT, members, **changes)


def run_started(run: int = 1, max_workers: int = 4) -> f.GraphRunStarted:
    """Return the start of a run."""
    return f.GraphRunStarted(run, max_workers, ("a", "b"), ((1, 0),))


_TASK_NAMES = st.sampled_from(["a", "b", "c", "d"])
_MEMBERS = st.lists(
    st.builds(
        Member,
        _TASK_NAMES,
        st.lists(_TASK_NAMES, max_size=3, unique=True).map(tuple),
        st.booleans(),
        st.booleans(),
        st.none() | retry_specs,
    ),
    max_size=4,
    unique_by=lambda place: place.task,
).map(tuple)
_ERRORS = st.dictionaries(_TASK_NAMES, st.fixed_dictionaries({"type": texts, "text": texts}), max_size=2)
_GRAPH_CREATED = st.builds(
    f.GraphCreated,
    title=texts,
    created_at=times,
    members=_MEMBERS,
    source=st.none() | st.builds(f.Source, texts, st.just("0" * 64)),
    max_workers=st.none() | st.integers(1, 16),
)
_GRAPH_REVISED = st.builds(f.GraphRevised, _MEMBERS, st.none() | texts)
_RUN_STARTED = st.builds(run_started, st.just(0), st.integers(1, 16))
_GRAPH_CANCEL_REQUESTED = st.builds(f.GraphCancelRequested, texts, texts)
_RUN_IS_ON = st.one_of(
    _GRAPH_REVISED,
    _GRAPH_CANCEL_REQUESTED,
    st.builds(
        f.GraphRunFinished,
        st.just(0),
        st.sampled_from([RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED]),
        _ERRORS,
        st.none() | seconds,
    ),
    st.builds(f.GraphRunInterrupted, st.just(0), texts, _ERRORS, st.none() | seconds),
)
_RUN_IS_INTERRUPTED = st.one_of(
    _GRAPH_CANCEL_REQUESTED, st.builds(f.GraphRunResumed, st.just(0), texts, st.booleans(), st.booleans())
)
_NO_RUN_IS_ON = st.one_of(_GRAPH_REVISED, _RUN_STARTED, _RUN_STARTED, st.builds(f.GraphDeleted, texts))


@st.composite
def graph_histories(draw: st.DrawFn, graph_id: str = "g", max_events: int = 10) -> list[f.GraphFact]:
    """Return what a graph's stream could hold."""
    facts: list[f.GraphFact] = [draw(_GRAPH_CREATED)]
    state = graph_rules.apply(None, facts[0], graph_id=graph_id, version=1)
    for _ in range(draw(st.integers(0, max_events))):
        if state.is_deleted:
            fact = draw(_GRAPH_CREATED)
        elif state.run_status is RunStatus.RUNNING:
            fact = draw(_RUN_IS_ON)
        elif state.run_status is RunStatus.INTERRUPTED:
            fact = draw(st.one_of(_RUN_IS_INTERRUPTED, _NO_RUN_IS_ON))
        else:
            fact = draw(_NO_RUN_IS_ON)
        if getattr(fact, "run", None) == 0:
            fact = replace(fact, run=state.runs + isinstance(fact, f.GraphRunStarted))
        facts.append(fact)
        state = graph_rules.apply(state, fact, graph_id=graph_id, version=len(facts))
    return facts


@st.composite
def appends(draw: st.DrawFn, histories: st.SearchStrategy[Mapping[str, list[Any]]]) -> list[list[Batch]]:
    """Return histories of several streams, cut into batches, mixed into appends; each stream in its own order."""
    left = {stream: list(facts) for stream, facts in draw(histories).items()}
    versions = dict.fromkeys(left, 0)
    wanted: list[list[Batch]] = []
    while any(left.values()):
        batches: list[Batch] = []
        for stream in draw(st.lists(st.sampled_from([name for name in left if left[name]]), min_size=1, max_size=3)):
            size = draw(st.integers(1, 4))
            facts, left[stream] = left[stream][:size], left[stream][size:]
            if facts:
                batches.append(Batch(stream, facts, versions[stream]))
                versions[stream] += len(facts)
        wanted.append(batches)
    return wanted
