"""States to the values of their rows and back. A row is its state: nothing else decides what a column holds.

Two things a row holds in another form. A text that SQLite can't hold (a lone surrogate) or that its functions cut
(NUL) is stored as U+FFFD and its JSON form; and of an error text only the last 4 KiB are kept, with the length of the
whole beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ttasks.events.agent_facts import FileEdit
from ttasks.events.codec import from_iso, iso, to_json
from ttasks.events.facts import Member, RetrySpec, Source
from ttasks.events.status import OnInterrupted, RunStatus, TaskStatus, TaskType
from ttasks.state.agent import ModelCallState, PermissionState, ToolCallState
from ttasks.state.graph import GraphState, RunState
from ttasks.state.record import made
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, ResultState, TaskState

ERROR_BYTES_MAX: Final = 4096
_ESCAPED: Final = "\ufffd"

Row = tuple[Any, ...]


def text(value: str) -> str:
    """Return `value` in a form that SQLite holds and hands back unchanged."""
    if value.isascii():
        return value if "\0" not in value else _ESCAPED + json.dumps(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return _ESCAPED + json.dumps(value)
    return value if "\0" not in value and value[0] != _ESCAPED else _ESCAPED + json.dumps(value)


def from_text(stored: str) -> str:
    """Return the text that `text` was given."""
    if stored.isascii() or stored[0] != _ESCAPED:
        return stored
    value: str = json.loads(stored[1:])
    return value


def _text(value: str | None) -> str | None:
    return None if value is None else text(value)


def _from_text(stored: str | None) -> str | None:
    return None if stored is None else from_text(stored)


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


def _from_time(stored: str | None) -> datetime | None:
    return None if stored is None else from_iso(stored)


def _json(value: object) -> str | None:
    return None if value is None else to_json(value)


def _from_json(stored: str | None) -> Any:
    return None if stored is None else json.loads(stored)


def tail(error: str) -> str:
    """Return the last 4 KiB (of UTF-8) of an error text, cut between characters."""
    if len(error) * 4 <= ERROR_BYTES_MAX:
        return error
    encoded = error.encode("utf-8", "surrogatepass")
    if len(encoded) <= ERROR_BYTES_MAX:
        return error
    start = len(encoded) - ERROR_BYTES_MAX
    while encoded[start] & 0xC0 == 0x80:
        start += 1
    return encoded[start:].decode("utf-8", "surrogatepass")


def _tail(error: str | None, length: int | None) -> tuple[str | None, int | None]:
    """Return what is kept of an error text, and of how many characters the whole is, where it has more."""
    if error is None:
        return None, None
    kept = tail(error)
    return kept, len(error) if length is None and len(kept) < len(error) else length


def _error(error: str | None, length: int | None) -> tuple[str | None, int | None]:
    kept, length = _tail(error, length)
    return _text(kept), length


_Forms = Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]
"""For columns in which something else is stored than the state holds: how it is written, and how it is read."""
_TEXT: Final = (_text, _from_text)
_TIME: Final = (_time, _from_time)


def _stored(values: Mapping[str, Any], columns: Sequence[str], forms: _Forms) -> Row:
    return tuple(forms[name][0](values[name]) if name in forms else values[name] for name in columns)


def _read(row: Row, columns: Sequence[str], forms: _Forms) -> dict[str, Any]:
    named = zip(columns, row, strict=True)
    return {name: forms[name][1](value) if name in forms else value for name, value in named}


TASKS: Final = (
    "id", "title", "status", "type", "name", "payload", "description", "created_at", "attempts", "error",
    "error_length", "blocked_by", "timeout", "cwd", "env", "env_digests", "on_interrupted", "derived_from",
    "running_attempt", "retry", "retry_due_at", "cancel_requested_by", "interruptions", "resolution", "is_deleted",
    "version", "result_status", "result_attempt", "result_started_at", "result_finished_at", "result_duration",
    "result_error", "result_error_length", "result_returncode", "result_reason", "result_error_code",
    "redacted", "grace", "wait_for_output",
)  # fmt: skip
_NO_RESULT: Final = (None,) * 10

# Rows of tasks and attempts are made for every event, so these two ask statuses for `_value_`, which is an attribute:
# `value` is a function of enum's.


def task_row(state: TaskState) -> Row:
    """Return the row of `tasks`, in the order of `TASKS`."""
    result = state.result
    if result is None:
        ending: Row = _NO_RESULT
    else:
        ending = (
            result.status._value_,
            result.attempt,
            iso(result.started_at),
            iso(result.finished_at),
            result.duration,
            *_error(result.error, result.error_length),
            result.returncode,
            result.reason,
            _text(result.error_code),
        )
    return (
        state.id,
        text(state.title),
        state.status._value_,
        state.type._value_,
        text(state.name),
        text(state.payload),
        text(state.description),
        iso(state.created_at),
        state.attempts,
        *_error(state.error, state.error_length),
        state.blocked_by,
        state.timeout,
        _text(state.cwd),
        _json(state.env),
        _json(state.env_digests),
        state.on_interrupted._value_,
        state.derived_from,
        state.running_attempt,
        state.retry,
        _time(state.retry_due_at),
        _text(state.cancel_requested_by),
        state.interruptions,
        state.resolution,
        int(state.is_deleted),
        state.version,
        *ending,
        None if state.redacted is None else to_json(state.redacted),
        state.grace,
        int(state.wait_for_output),
    )


_TASK_STATUS: Final = {status.value: status for status in TaskStatus}
_TASK_TYPE: Final = {kind.value: kind for kind in TaskType}
_ON_INTERRUPTED: Final = {answer.value: answer for answer in OnInterrupted}


def task_state(row: Row) -> TaskState:
    """Return the state whose row this is; its error texts are tails where the row says so."""
    (
        id_, title, status, kind, name, payload, description, created_at, attempts, error,
        error_length, blocked_by, timeout, cwd, env, env_digests, on_interrupted, derived_from,
        running_attempt, retry, retry_due_at, cancel_requested_by, interruptions, resolution, is_deleted,
        version, result_status, result_attempt, result_started_at, result_finished_at, result_duration,
        result_error, result_error_length, result_returncode, result_reason, result_error_code,
        redacted, grace, wait_for_output,
    ) = row  # fmt: skip
    result = None
    if result_status is not None:
        result = made(
            ResultState,
            status=_TASK_STATUS[result_status],
            attempt=result_attempt,
            started_at=from_iso(result_started_at),
            finished_at=from_iso(result_finished_at),
            duration=result_duration,
            error=_from_text(result_error),
            error_length=result_error_length,
            returncode=result_returncode,
            reason=result_reason,
            error_code=_from_text(result_error_code),
        )
    return made(
        TaskState,
        id=id_,
        name=from_text(name),
        title=from_text(title),
        type=_TASK_TYPE[kind],
        status=_TASK_STATUS[status],
        payload=from_text(payload),
        description=from_text(description),
        created_at=from_iso(created_at),
        timeout=timeout,
        cwd=_from_text(cwd),
        env=_from_json(env),
        env_digests=_from_json(env_digests),
        on_interrupted=_ON_INTERRUPTED[on_interrupted],
        derived_from=derived_from,
        version=version,
        error=_from_text(error),
        error_length=error_length,
        blocked_by=blocked_by,
        attempts=attempts,
        running_attempt=running_attempt,
        retry=retry,
        retry_due_at=_from_time(retry_due_at),
        cancel_requested_by=_from_text(cancel_requested_by),
        interruptions=interruptions,
        resolution=resolution,
        is_deleted=bool(is_deleted),
        redacted=None if redacted is None else tuple(json.loads(redacted)),
        grace=grace,
        wait_for_output=bool(wait_for_output),
        result=result,
    )


ATTEMPTS: Final = (
    "task_id", "attempt", "status", "handler", "started_at", "finished_at", "duration", "returncode", "reason",
    "exception", "error", "error_length", "retry", "graph_id", "run", "runner", "pid", "process_start", "position",
    "error_code", "session", "model", "premium_requests", "nano_aiu", "input_tokens", "output_tokens",
)  # fmt: skip


def attempt_row(state: AttemptState) -> Row:
    """Return the row of `attempts`, in the order of `ATTEMPTS`."""
    return (
        state.task_id,
        state.attempt,
        state.status._value_,
        text(state.handler),
        iso(state.started_at),
        _time(state.finished_at),
        state.duration,
        state.returncode,
        state.reason,
        _text(state.exception),
        *_error(state.error, state.error_length),
        state.retry,
        state.graph,
        state.run,
        state.runner,
        state.pid,
        state.process_start,
        state.position,
        _text(state.error_code),
        _text(state.session),
        _text(state.model),
        state.premium_requests,
        state.nano_aiu,
        state.input_tokens,
        state.output_tokens,
    )


def attempt_state(row: Row) -> AttemptState:
    """Return the attempt whose row this is."""
    data = dict(zip(ATTEMPTS, row, strict=True))
    return AttemptState(
        task_id=data["task_id"],
        attempt=data["attempt"],
        position=data["position"],
        runner=data["runner"],
        status=TaskStatus(data["status"]),
        handler=from_text(data["handler"]),
        started_at=from_iso(data["started_at"]),
        retry=data["retry"],
        graph=data["graph_id"],
        run=data["run"],
        finished_at=_from_time(data["finished_at"]),
        duration=data["duration"],
        returncode=data["returncode"],
        reason=data["reason"],
        exception=_from_text(data["exception"]),
        error=_from_text(data["error"]),
        error_length=data["error_length"],
        pid=data["pid"],
        process_start=data["process_start"],
        error_code=_from_text(data["error_code"]),
        session=_from_text(data["session"]),
        model=_from_text(data["model"]),
        premium_requests=data["premium_requests"],
        nano_aiu=data["nano_aiu"],
        input_tokens=data["input_tokens"],
        output_tokens=data["output_tokens"],
    )


GRAPHS: Final = (
    "id", "title", "status", "created_at", "runs", "source_path", "source_sha256", "max_workers", "derived_from",
    "cancel_requested_by", "errors", "is_deleted", "version",
)  # fmt: skip
GRAPH_TASKS: Final = ("graph_id", "place", "task_id", "is_finally", "is_required", "retry_policy")
GRAPH_DEPENDENCIES: Final = ("graph_id", "task_id", "place", "dependency_id")
NEVER_RUN: Final = "pending"


def graph_row(state: GraphState) -> Row:
    """Return the row of `graphs`, in the order of `GRAPHS`."""
    return (
        state.id,
        text(state.title),
        state.run_status.value if state.run_status is not None else NEVER_RUN,
        iso(state.created_at),
        state.runs,
        _text(state.source.path) if state.source is not None else None,
        state.source.sha256 if state.source is not None else None,
        state.max_workers,
        state.derived_from,
        _text(state.cancel_requested_by),
        to_json(state.errors),
        int(state.is_deleted),
        state.version,
    )


def member_rows(state: GraphState) -> Iterator[Row]:
    """Yield the graph's rows of `graph_tasks`, in the order of `GRAPH_TASKS`."""
    for place, member in enumerate(state.members.values()):
        policy = member.retry_policy
        yield (
            state.id, place, member.task, int(member.is_finally), int(member.is_required),
            _json(policy and {**vars(policy)}),
        )  # fmt: skip


def dependency_rows(state: GraphState) -> Iterator[Row]:
    """Yield the graph's rows of `graph_dependencies`, in the order of `GRAPH_DEPENDENCIES`."""
    for member in state.members.values():
        for place, dependency in enumerate(member.after):
            yield (state.id, member.task, place, dependency)


def graph_state(row: Row, members: Sequence[Row], dependencies: Sequence[Row]) -> GraphState:
    """Return the graph whose rows these are; `members` and `dependencies` are ordered by place."""
    data = dict(zip(GRAPHS, row, strict=True))
    after: dict[str, list[str]] = {}
    for _, task_id, _, dependency in dependencies:
        after.setdefault(task_id, []).append(dependency)
    status = data["status"]
    source = data["source_path"]
    return GraphState(
        id=data["id"],
        title=from_text(data["title"]),
        created_at=from_iso(data["created_at"]),
        members={
            task_id: made(
                Member,
                task=task_id,
                after=tuple(after.get(task_id, ())),
                is_finally=bool(is_finally),
                is_required=bool(is_required),
                retry_policy=_retry_spec(policy),
            )
            for _, _, task_id, is_finally, is_required, policy in members
        },
        source=Source(from_text(source), data["source_sha256"]) if source is not None else None,
        max_workers=data["max_workers"],
        derived_from=data["derived_from"],
        version=data["version"],
        runs=data["runs"],
        run_status=RunStatus(status) if status != NEVER_RUN else None,
        cancel_requested_by=_from_text(data["cancel_requested_by"]),
        errors=json.loads(data["errors"]),
        is_deleted=bool(data["is_deleted"]),
    )


def _retry_spec(stored: str | None) -> RetrySpec | None:
    if stored is None:
        return None
    data = json.loads(stored)
    if data["retry_on"] is not None:
        data["retry_on"] = tuple(data["retry_on"])
    return RetrySpec(**data)


RUNS: Final = (
    "graph_id", "run", "status", "started_at", "finished_at", "max_workers", "cancel_requested_by", "why", "errors",
    "runner", "position", "duration",
)  # fmt: skip


def run_row(state: RunState) -> Row:
    """Return the row of `runs`, in the order of `RUNS`."""
    return (
        state.graph_id,
        state.run,
        state.status.value,
        iso(state.started_at),
        _time(state.finished_at),
        state.max_workers,
        _text(state.cancel_requested_by),
        _text(state.why),
        to_json(state.errors),
        state.runner,
        state.position,
        state.duration,
    )


def run_state(row: Row) -> RunState:
    """Return the run whose row this is."""
    data = dict(zip(RUNS, row, strict=True))
    return RunState(
        graph_id=data["graph_id"],
        run=data["run"],
        position=data["position"],
        runner=data["runner"],
        status=RunStatus(data["status"]),
        max_workers=data["max_workers"],
        started_at=from_iso(data["started_at"]),
        finished_at=_from_time(data["finished_at"]),
        cancel_requested_by=_from_text(data["cancel_requested_by"]),
        why=_from_text(data["why"]),
        errors=json.loads(data["errors"]),
        duration=data["duration"],
    )


RUNNERS: Final = (
    "position", "id", "user", "host", "pid", "cwd", "command", "started_at", "ttasks_version", "python_version",
    "platform", "git_root", "git_commit", "git_branch", "git_dirty", "boot_id", "process_start",
)  # fmt: skip
_RUNNER_TEXTS: Final = frozenset({"user", "host", "cwd", "git_root", "git_branch", "git_commit"})
_RUNNER_FORMS: Final[_Forms] = {
    **dict.fromkeys(_RUNNER_TEXTS, _TEXT),
    "command": (_json, lambda stored: tuple(json.loads(stored))),
    "started_at": _TIME,
    "git_dirty": (
        lambda dirty: None if dirty is None else int(dirty),
        lambda flag: None if flag is None else bool(flag),
    ),
}


def runner_row(state: RunnerState) -> Row:
    """Return the row of `runners`, in the order of `RUNNERS`."""
    return _stored(vars(state), RUNNERS, _RUNNER_FORMS)


def runner_state(row: Row) -> RunnerState:
    """Return the runner whose row this is."""
    return RunnerState(**_read(row, RUNNERS, _RUNNER_FORMS))


TOOL_CALLS: Final = (
    "position", "task_id", "attempt", "call", "tool", "status", "arguments", "server", "parent", "agent", "started_at",
    "finished_at", "duration", "exit_code", "error", "error_length", "files", "end_position",
)  # fmt: skip
_TOOL_CALL_FORMS: Final[_Forms] = {
    **dict.fromkeys(("call", "tool", "server", "parent", "agent", "error"), _TEXT),
    **dict.fromkeys(("started_at", "finished_at"), _TIME),
    "arguments": (_json, _from_json),
    "files": (_json, lambda stored: None if stored is None else tuple(FileEdit(**edit) for edit in json.loads(stored))),
}


def tool_call_row(state: ToolCallState) -> Row:
    """Return the row of `tool_calls`, in the order of `TOOL_CALLS`."""
    error, length = _tail(state.error, state.error_length)
    return _stored({**vars(state), "error": error, "error_length": length}, TOOL_CALLS, _TOOL_CALL_FORMS)


def tool_call_state(row: Row) -> ToolCallState:
    """Return the tool call whose row this is; its error text is a tail where the row says so."""
    return ToolCallState(**_read(row, TOOL_CALLS, _TOOL_CALL_FORMS))


PERMISSIONS: Final = (
    "position", "task_id", "attempt", "request", "call", "kind", "subject", "intention", "agent", "decision",
    "decided_by", "feedback", "requested_at", "decided_at",
)  # fmt: skip
_PERMISSION_TEXTS: Final = ("request", "call", "kind", "subject", "intention", "agent", "decided_by", "feedback")
_PERMISSION_FORMS: Final[_Forms] = {
    **dict.fromkeys(_PERMISSION_TEXTS, _TEXT),
    **dict.fromkeys(("requested_at", "decided_at"), _TIME),
}


def permission_row(state: PermissionState) -> Row:
    """Return the row of `permissions`, in the order of `PERMISSIONS`."""
    return _stored(vars(state), PERMISSIONS, _PERMISSION_FORMS)


def permission_state(row: Row) -> PermissionState:
    """Return the request whose row this is."""
    return PermissionState(**_read(row, PERMISSIONS, _PERMISSION_FORMS))


MODEL_CALLS: Final = (
    "position", "task_id", "attempt", "model", "agent", "call", "input_tokens", "output_tokens", "cache_read_tokens",
    "cache_write_tokens", "reasoning_tokens", "duration", "multiplier", "nano_aiu", "initiator", "finish_reason",
    "called_at",
)  # fmt: skip
_MODEL_CALL_FORMS: Final[_Forms] = {
    **dict.fromkeys(("model", "agent", "call", "initiator", "finish_reason"), _TEXT),
    "called_at": _TIME,
}


def model_call_row(state: ModelCallState) -> Row:
    """Return the row of `model_calls`, in the order of `MODEL_CALLS`."""
    return _stored(vars(state), MODEL_CALLS, _MODEL_CALL_FORMS)


def model_call_state(row: Row) -> ModelCallState:
    """Return the call whose row this is."""
    return ModelCallState(**_read(row, MODEL_CALLS, _MODEL_CALL_FORMS))
