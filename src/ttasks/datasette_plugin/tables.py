"""What a ledger's tables and columns hold, said to whoever browses them in Datasette, and how they are listed."""

from __future__ import annotations

from typing import Any, Final

from ttasks.datasette_plugin.ledgers import is_ledger, ledger_names

DATABASE: Final = (
    "A ledger of ttasks: every event of every task and graph, in the order in which they were recorded, and tables that"
    " are folded from them. It is read only here. Times are UTC, durations and time-outs seconds. A row that says"
    " 'running' is what the log says; a log cannot know that a process died, so the pages under 'What ran in this"
    " ledger' ask whether it lives."
)

TABLES: Final[dict[str, str]] = {
    "events": "The log: everything that happened, in the order of position. Rows are only ever appended, and each one's"
    " hash covers all rows before it. All other tables can be made again from this one.",
    "tasks": "Every task as it stands: what to do, how often it was tried, and how its latest attempt ended.",
    "attempts": "Every attempt to run a task, with how it ended and which process ran it.",
    "graphs": "Every graph of tasks, and where its latest run stands.",
    "graph_tasks": "Which tasks are in which graph.",
    "graph_dependencies": "Which task of a graph waits for which other ones.",
    "runs": "Every run of a graph.",
    "runners": "Every process that recorded something: who ran it, where, and at which commit.",
    "tool_calls": "Every call of a tool by an agent, with how it ended. What it gave out is in the event at its end.",
    "permissions": "Everything that an agent asked permission for, with what was decided, and by what.",
    "model_calls": "Every answer of a model to an agent, with what it took.",
    "task_output": "What tasks printed, a row for each chunk that was read, taken out of the events of type TaskOutput."
    " Order by position, chunk. It is long: give a task_id, or a range of positions, which is the fast way.",
    "_sqlite_migrations": "Which migrations of the schema were applied, and when.",
}
"""Each table and view of a ledger, and what its rows are."""

COLUMNS: Final[dict[str, dict[str, str]]] = {
    "events": {
        "position": "The place in the whole log: 1, 2, 3 … without gaps. It names the event.",
        "stream": "What the event is about: task-<id>, graph-<id>, runner-<id>, or ledger.",
        "version": "The place in its stream: 1, 2, 3 … without gaps.",
        "type": "What happened, in the past tense.",
        "type_version": "The version of that type.",
        "recorded_at": "When it was recorded, UTC (ISO 8601): one time for all events of a commit.",
        "runner": "The process that recorded it, by the position of its RunnerStarted. Empty only in event 1.",
        "cause": "The position of the event that led to it, where there is one.",
        "data": "The fields of its type, as JSON. A field without a value is left out.",
        "hash": "SHA-256, 32 bytes, of the hash before it and every stored column of this event: the chain.",
        "task_id": "Computed from the stream: the task's id, in a task's stream.",
        "graph_id": "Computed from the stream: the graph's id, in a graph's stream.",
    },
    "tasks": {
        "id": "The id, a UUID.",
        "title": "What people call it.",
        "status": "Where it stands: pending, running, succeeded, failed, cancelled, blocked or interrupted.",
        "type": "bash, powershell, prompt or agent.",
        "name": "What it is called in its workflow: the same task has the same name in every run of a file.",
        "payload": "What to do: the command, or the prompt.",
        "description": "More about it.",
        "created_at": "When it was made, UTC (ISO 8601).",
        "attempts": "How many attempts were started.",
        "error": "What went wrong: the last 4 KiB.",
        "error_length": "How many characters the whole error text has, where that is more than is kept here.",
        "blocked_by": "The task that blocked it.",
        "timeout": "Seconds that an attempt may take. Empty: any time.",
        "cwd": "The folder that it runs in. Empty: its runner's.",
        "env": "Its extra environment variables but for the secret ones, as JSON: name to value.",
        "env_digests": "The secret ones, as JSON: name to digest of the value.",
        "on_interrupted": "What is to become of it when its runner dies: rerun, fail or ask.",
        "derived_from": "The task that it repeats.",
        "redacted": "The columns that hold *** in the place of a secret, as JSON. Empty: none.",
        "grace": "Seconds between SIGTERM and SIGKILL when its processes are ended.",
        "wait_for_output": "0: a script that succeeded is not waited for where what it started holds its output open.",
        "running_attempt": "The number of the attempt that runs. Empty: none, or it was set to running by hand.",
        "retry": "The number of the retry that runs or is due, 0 for none.",
        "retry_due_at": "When the next attempt is due, UTC (ISO 8601).",
        "cancel_requested_by": "Who wants it cancelled: user@host.",
        "interruptions": "How many attempts in a row were interrupted.",
        "resolution": "What a person said an interrupted task counts as.",
        "is_deleted": "1: it left the collection. Its events stay.",
        "version": "How many events its stream has.",
        "result_status": "How its latest attempt ended. Empty, with all that follows: it has no result.",
        "result_attempt": "The number of that attempt. Empty: it was cancelled before it ran.",
        "result_started_at": "When that began, UTC (ISO 8601).",
        "result_finished_at": "When it ended, UTC (ISO 8601).",
        "result_duration": "Seconds that it took.",
        "result_error": "Its error text: the last 4 KiB.",
        "result_error_length": "How many characters the whole has, where that is more than is kept here.",
        "result_returncode": "Its exit code. Below zero: the number of the signal that ended it.",
        "result_reason": "Why it did not succeed: exit_code, timeout, cancelled, handler or interrupted.",
        "result_error_code": "The word by which programs know what went wrong.",
    },
    "attempts": {
        "task_id": "The task.",
        "attempt": "The number of the attempt, from 1, over the task's whole life.",
        "status": "running, or how it ended.",
        "handler": "The qualified name of what ran it.",
        "started_at": "When it began, UTC (ISO 8601).",
        "finished_at": "When it ended, UTC (ISO 8601).",
        "duration": "Seconds that it took.",
        "returncode": "Its exit code. Below zero: the number of the signal that ended it.",
        "reason": "Why it did not succeed: exit_code, timeout, cancelled, handler or interrupted.",
        "exception": "The qualified name of what was raised.",
        "error": "Its error text: the last 4 KiB.",
        "error_length": "How many characters the whole error text has, where that is more than is kept here.",
        "retry": "0, or which retry it was.",
        "graph_id": "The graph that it ran in. Empty: it ran by itself.",
        "run": "The number of the run of that graph.",
        "runner": "The process that ran it, by the position of its RunnerStarted.",
        "pid": "The number of its child process.",
        "process_start": "What the operating system calls the start of that process.",
        "position": "The position in the log of its TaskStarted.",
        "error_code": "The word by which programs know what went wrong.",
        "session": "Of an agent's attempt: the id of its conversation, by which it can be taken up again.",
        "model": "The model that the agent was to use.",
        "premium_requests": "What the agent's turn cost in premium requests, by its own account.",
        "nano_aiu": "What it cost in billionths of an AI credit, by its own account.",
        "input_tokens": "How many tokens its models were given.",
        "output_tokens": "How many tokens they gave.",
    },
    "graphs": {
        "id": "The id, a UUID.",
        "title": "What people call it.",
        "status": "Where its latest run stands: pending (it was never run), running, succeeded, failed, cancelled or"
        " interrupted.",
        "created_at": "When it was made, UTC (ISO 8601).",
        "runs": "How many runs it had.",
        "source_path": "The workflow file that it was made from.",
        "source_sha256": "The SHA-256 of that file, in hexadecimal.",
        "max_workers": "How many tasks that file lets run at a time.",
        "derived_from": "The graph that it repeats.",
        "cancel_requested_by": "Who wants its run cancelled: user@host.",
        "errors": "What was raised in its latest run, as JSON: task id to type and text.",
        "is_deleted": "1: it left the collection. Its events stay.",
        "version": "How many events its stream has.",
    },
    "graph_tasks": {
        "graph_id": "The graph.",
        "place": "The place in it, from 0.",
        "task_id": "The task.",
        "is_finally": "1: a finally task, which runs at the end however the others ended.",
        "is_required": "0: the graph can succeed without it.",
        "retry_policy": "How often it is tried, as JSON. Empty: once.",
    },
    "graph_dependencies": {
        "graph_id": "The graph.",
        "task_id": "The task that waits.",
        "place": "The place among what it waits for, from 0.",
        "dependency_id": "The task that it waits for.",
    },
    "runs": {
        "graph_id": "The graph.",
        "run": "The number of the run, from 1.",
        "status": "running, or how it ended.",
        "started_at": "When it began, UTC (ISO 8601).",
        "finished_at": "When it ended, UTC (ISO 8601).",
        "max_workers": "How many tasks ran at a time.",
        "duration": "Seconds that its runners worked at it. Empty: an older ttasks recorded it.",
        "cancel_requested_by": "Who wanted it cancelled: user@host.",
        "why": "How they said it, or what is known of an interruption.",
        "errors": "What was raised in it, as JSON: task id to type and text.",
        "runner": "The process that runs it, by the position of its RunnerStarted.",
        "position": "The position in the log of its GraphRunStarted.",
    },
    "runners": {
        "position": "The position in the log of its RunnerStarted, by which everything names it.",
        "id": "The id, a UUID.",
        "user": "Who ran it, by the word of the system.",
        "host": "On which machine.",
        "pid": "The number of the process.",
        "cwd": "The folder that it was in.",
        "command": "Its command line, as JSON.",
        "started_at": "When it recorded its first event, UTC (ISO 8601).",
        "ttasks_version": "The version of ttasks.",
        "python_version": "The version of Python.",
        "platform": "The system.",
        "git_root": "The checkout that its folder is in.",
        "git_commit": "The commit that was checked out there.",
        "git_branch": "The branch.",
        "git_dirty": "1: something differed from the commit.",
        "boot_id": "What names that boot of the machine.",
        "process_start": "What the operating system calls the start of the process.",
    },
    "tool_calls": {
        "position": "The position in the log of its ToolCallStarted.",
        "task_id": "The task.",
        "attempt": "The number of the attempt.",
        "call": "The id of the call within the conversation.",
        "tool": "The name of the tool.",
        "status": "running, or how it ended: succeeded, failed, denied or aborted. unknown: its attempt ended while it"
        " ran, and nobody said how it ended.",
        "arguments": "What it was given, as JSON.",
        "server": "The MCP server that the tool is of. Empty: it is built in, or the caller's own.",
        "parent": "The id of the call that it is part of.",
        "agent": "The id of the sub-agent that called it. Empty: the agent that was asked.",
        "started_at": "When it began, UTC (ISO 8601).",
        "finished_at": "When it ended, UTC (ISO 8601).",
        "duration": "Seconds from one to the other.",
        "exit_code": "Of a command: its exit code.",
        "error": "What went wrong: the last 4 KiB.",
        "error_length": "How many characters the whole error text has, where that is more than is kept here.",
        "files": "What was changed, as JSON: path and kind of change of each file.",
        "end_position": "The position in the log of its ToolCallEnded, which holds what the agent was given.",
    },
    "permissions": {
        "position": "The position in the log of its PermissionRequested.",
        "task_id": "The task.",
        "attempt": "The number of the attempt.",
        "request": "The id of the request within the conversation.",
        "call": "The id of the tool call that it belongs to.",
        "kind": "Of what sort it is: shell, write, read, url, mcp, custom-tool and others.",
        "subject": "What it is about: the command, the path, the address, the tool.",
        "intention": "What the agent says it is for.",
        "agent": "The id of the sub-agent that asks. Empty: the agent that was asked.",
        "decision": "approved or denied. unanswered: its attempt ended before. Empty: nobody decided yet.",
        "decided_by": "What decided it: a rule, or the name of a function.",
        "feedback": "What the agent was told of it.",
        "requested_at": "When it was asked, UTC (ISO 8601).",
        "decided_at": "When it was decided, UTC (ISO 8601).",
    },
    "model_calls": {
        "position": "The position in the log of its ModelCalled.",
        "task_id": "The task.",
        "attempt": "The number of the attempt.",
        "model": "Which model.",
        "agent": "The id of the sub-agent that called it. Empty: the agent that was asked.",
        "call": "The provider's id of the call.",
        "input_tokens": "How many tokens it was given.",
        "output_tokens": "How many tokens it gave.",
        "cache_read_tokens": "How many tokens were read from a cache.",
        "cache_write_tokens": "How many tokens were written into a cache.",
        "reasoning_tokens": "How many tokens it thought with.",
        "duration": "Seconds that it took.",
        "multiplier": "What the model costs in premium requests a prompt: the same on every call, not to be summed.",
        "nano_aiu": "What the call cost in billionths of an AI credit.",
        "initiator": "Who made the call, in the agent's word.",
        "finish_reason": "Why the model stopped, in its provider's word.",
        "called_at": "When it answered, UTC (ISO 8601).",
    },
    "task_output": {
        "task_id": "The task.",
        "attempt": "The number of the attempt.",
        "position": "The position in the log of the TaskOutput that holds it.",
        "chunk": "The place in that event, from 0.",
        "stream": "stdout or stderr.",
        "at": "When it was read, UTC (ISO 8601).",
        "text": "What was printed.",
    },
    "_sqlite_migrations": {
        "id": "The place in the order in which they were applied, from 1.",
        "migration_set": "Whose migrations these are.",
        "name": "The migration.",
        "applied_at": "When it was applied.",
    },
}
"""Each column of each table and view, and what it holds, with its unit."""

LISTED: Final[dict[str, dict[str, Any]]] = {
    "events": {"sort_desc": "position"},  # to count types takes longer than Datasette lets a facet take
    "tasks": {"sort_desc": "id", "facets": ["status", "type"], "label_column": "title"},
    "attempts": {"sort_desc": "task_id", "facets": ["status", "reason"]},
    "graphs": {"sort_desc": "id", "facets": ["status"], "label_column": "title"},
    "graph_tasks": {},
    "graph_dependencies": {},
    "runs": {"sort_desc": "position", "facets": ["status"]},
    "runners": {"sort_desc": "position", "facets": ["user", "host", "git_branch"], "label_column": "user"},
    "tool_calls": {"sort_desc": "position", "facets": ["status", "tool"]},
    "permissions": {"sort_desc": "position", "facets": ["decision", "kind"]},
    "model_calls": {"sort_desc": "position", "facets": ["model"]},
    "task_output": {},  # a view has no index: to sort or facet it would be to read all that was ever printed
    "_sqlite_migrations": {"hidden": True},
}
"""How Datasette lists each table: newest first, what can be chosen from, and what a reference to a row reads.

Ids begin with the time at which they were made, and are keys: to sort by them costs nothing. To sort 100,000 tasks by a
time would come near the second that Datasette gives a query.
"""


def metadata(datasette: Any, database: str | None) -> dict[str, Any]:
    """Return what Datasette 0.65 is told about `database` (None: about all), nothing about what is no ledger.

    Each answer is a new one down to the last level that Datasette writes into: it merges what others say into it.
    """
    names = ledger_names(datasette) if database is None else [database] if is_ledger(datasette, database) else []
    own = (getattr(datasette, "_metadata_local", None) or {}).get("databases") or {}
    return {"databases": {name: _metadata_of_ledger(own.get(name) or {}) for name in names}} if names else {}


def _metadata_of_ledger(own: dict[str, Any]) -> dict[str, Any]:
    own_tables = own.get("tables") or {}
    tables = {
        name: {**_listed(name, own_tables.get(name) or {}), "description": description, "columns": dict(COLUMNS[name])}
        for name, description in TABLES.items()
    }
    return {"description": DATABASE, "tables": tables}


def _listed(table: str, own: dict[str, Any]) -> dict[str, Any]:
    """Return how a table is listed, where its configuration does not say: it can't be sorted in both directions."""
    return {key: value for key, value in LISTED[table].items() if key != "sort_desc" or "sort" not in own}


async def describe(datasette: Any, name: str) -> None:
    """Tell Datasette 1.0 about the ledger `name`. What is said about it already, in its configuration, stays."""
    config = datasette.config.setdefault("databases", {}).setdefault(name, {}).setdefault("tables", {})
    for table in LISTED:
        own = config.get(table) or {}
        config[table] = {**_listed(table, own), **own}
    if "description" not in await datasette.get_database_metadata(name):
        await datasette.set_database_metadata(name, "description", DATABASE)
    for table, description in TABLES.items():
        if "description" not in await datasette.get_resource_metadata(name, table):
            await datasette.set_resource_metadata(name, table, "description", description)
        for column, text in COLUMNS[table].items():
            if "description" not in await datasette.get_column_metadata(name, table, column):
                await datasette.set_column_metadata(name, table, column, "description", text)
