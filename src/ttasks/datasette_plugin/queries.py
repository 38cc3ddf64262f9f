"""Questions that are asked of many ledgers, as queries that come with each: to read, to filter, and as JSON or CSV."""

# Nothing but texts of this file is put into these queries; what people give are parameters.
# ruff: noqa: S608

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from ttasks.datasette_plugin.ledgers import ledger_of
from ttasks.errors import TtasksError

_SINCE: Final = "coalesce(replace(nullif(trim(:since), ''), ' ', 'T'), replace(datetime('now', '-7 days'), ' ', 'T'))"
"""From when on: the last 7 days, where nothing is said. Times sort as texts, and a day sorts before all its times."""
_UNTIL: Final = "coalesce(replace(nullif(trim(:until), ''), ' ', 'T'), '9999') || 'z'"
"""Until when, all of the day, hour or minute that is named. A ``z`` sorts after all that can follow in a time."""
_ENDED: Final = "('succeeded', 'failed', 'cancelled', 'blocked')"
_SECONDS: Final = (
    "CASE WHEN runs.finished_at IS NOT NULL THEN coalesce("
    "(SELECT duration FROM runs AS own WHERE own.graph_id = runs.graph_id AND own.started_at = runs.started_at),"
    " max((julianday(runs.finished_at) - julianday(runs.started_at)) * 86400, 0)) END"
)
"""How long a run took: as its runners measured it, else by the calendar, but never less than 0.

In a ledger of format 2 `runs` has no such column: then the name is that of `_NO_DURATION`, which has to be joined.
"""
_NO_DURATION: Final = "(SELECT NULL AS duration) AS older"


def _like(parameter: str) -> str:
    """Return a pattern for texts that hold what is given as `parameter`, whatever signs are in it."""
    escaped = f"replace(replace(replace(trim(:{parameter}), '\\', '\\\\'), '%', '\\%'), '_', '\\_')"
    return f"'%' || {escaped} || '%' ESCAPE '\\'"


_CALLED_FOR: Final = (
    "coalesce(arguments ->> '$.command', arguments ->> '$.pattern', arguments ->> '$.query', arguments ->> '$.path',"
    " arguments ->> '$.file_path', arguments ->> '$.url', arguments ->> '$.prompt', arguments)"
)
"""What a tool was called for, as `ttasks.display.called_for` tells it."""
_SPENT: Final = f"""
WITH spent AS MATERIALIZED (
  SELECT attempts.task_id, attempts.attempt, attempts.graph_id, attempts.run, attempts.started_at, attempts.duration,
    coalesce(attempts.model, max(calls.model)) AS model, count(calls.position) AS model_calls,
    coalesce(attempts.input_tokens, sum(calls.input_tokens)) AS input_tokens,
    coalesce(attempts.output_tokens, sum(calls.output_tokens)) AS output_tokens,
    sum(calls.cache_read_tokens) AS cache_read_tokens, attempts.premium_requests,
    coalesce(attempts.nano_aiu, sum(calls.nano_aiu)) / 1e9 AS ai_credits
  FROM attempts
  LEFT JOIN model_calls AS calls ON calls.task_id = attempts.task_id AND calls.attempt = attempts.attempt
  WHERE attempts.session IS NOT NULL AND attempts.started_at >= {_SINCE}
  GROUP BY attempts.task_id, attempts.attempt
)"""
"""What each attempt of an agent cost: by its own account, or, where it was cut off before it gave one, by its calls."""
_SUMS: Final = """sum(spent.model_calls) AS model_calls, sum(spent.input_tokens) AS input_tokens,
  sum(spent.cache_read_tokens) AS cache_read_tokens, sum(spent.output_tokens) AS output_tokens,
  sum(spent.premium_requests) AS premium_requests, sum(spent.ai_credits) AS ai_credits"""


@dataclass(frozen=True)
class Query:
    """A question: its parameters are texts, and '' stands for one that was not given."""

    title: str
    description: str
    sql: str
    parameters: tuple[str, ...] = ()


QUERIES: Final[dict[str, Query]] = {
    "failures_since": Query(
        "Failures since",
        "Attempts that failed, newest first, at most 500. since: a day or a time, UTC, such as 2026-11-24 or"
        " 2026-11-24 08:00; empty: the last 7 days.",
        f"""
SELECT attempts.finished_at, tasks.title, attempts.task_id, attempts.attempt, attempts.reason, attempts.returncode,
  attempts.error, attempts.duration, attempts.graph_id, attempts.run, runners.user || '@' || runners.host AS who
FROM attempts
JOIN tasks ON tasks.id = attempts.task_id
LEFT JOIN runners ON runners.position = attempts.runner
WHERE attempts.status = 'failed' AND attempts.finished_at >= {_SINCE}
ORDER BY attempts.finished_at DESC
LIMIT 500""",
        ("since",),
    ),
    "slowest_tasks": Query(
        "Slowest tasks",
        "The 100 longest attempts that ended. since: a day or a time, UTC; empty: the last 7 days. name: only tasks"
        " whose name or title holds this; empty: all.",
        f"""
SELECT attempts.duration, tasks.title, tasks.name, attempts.task_id, attempts.attempt, attempts.status,
  attempts.started_at, attempts.graph_id, attempts.run
FROM attempts
JOIN tasks ON tasks.id = attempts.task_id
WHERE attempts.duration IS NOT NULL AND attempts.started_at >= {_SINCE}
  AND (tasks.name LIKE {_like("name")} OR tasks.title LIKE {_like("name")})
ORDER BY attempts.duration DESC
LIMIT 100""",
        ("since", "name"),
    ),
    "flakiest_tasks": Query(
        "Flakiest tasks",
        "Names of tasks of which some failed first and succeeded when they were tried again, the largest share first,"
        " at most 100. Each task counts once, by the name that it has in its workflow. since: tasks that ended from"
        " then on, UTC; empty: the last 7 days.",
        f"""
WITH failed_once AS MATERIALIZED (SELECT DISTINCT task_id FROM attempts WHERE status = 'failed'),
ended AS MATERIALIZED (
  SELECT name, attempts, result_finished_at, status = 'failed' AS is_failed,
    status = 'succeeded' AND attempts > 1 AND id IN (SELECT task_id FROM failed_once) AS is_flaky
  FROM tasks
  WHERE attempts > 0 AND result_finished_at >= {_SINCE}
)
SELECT name, count(*) AS tasks, sum(attempts) AS attempts, sum(is_flaky) AS failed_then_succeeded,
  round(100.0 * sum(is_flaky) / count(*), 1) AS percent_flaky, sum(is_failed) AS failed_for_good,
  max(result_finished_at) AS last_at
FROM ended
GROUP BY name
HAVING sum(is_flaky) > 0
ORDER BY percent_flaky DESC, failed_then_succeeded DESC, name
LIMIT 100""",
        ("since",),
    ),
    "runs_per_day": Query(
        "Runs per day",
        "How many runs of graphs began on a day (UTC), by status, and how long they took. since: a day, UTC; empty:"
        " the last 7 days. graph: only graphs whose title holds this; empty: all.",
        f"""
SELECT day, status, count(*) AS runs, sum(seconds) AS total_seconds, avg(seconds) AS average_seconds,
  avg(CASE WHEN place IN ((ended + 1) / 2, (ended + 2) / 2) THEN seconds END) AS median_seconds
FROM (
  SELECT substr(runs.started_at, 1, 10) AS day, runs.status, {_SECONDS} AS seconds,
    row_number() OVER (
      PARTITION BY substr(runs.started_at, 1, 10), runs.status ORDER BY {_SECONDS} NULLS LAST
    ) AS place,
    count(runs.finished_at) OVER (PARTITION BY substr(runs.started_at, 1, 10), runs.status) AS ended
  FROM runs
  JOIN graphs ON graphs.id = runs.graph_id
  CROSS JOIN {_NO_DURATION}
  WHERE runs.started_at >= {_SINCE} AND graphs.title LIKE {_like("graph")}
)
GROUP BY day, status
ORDER BY day DESC, status
LIMIT 1000""",
        ("since", "graph"),
    ),
    "what_ran_on_commit": Query(
        "What ran on a commit",
        "Attempts by processes whose folder was at a git commit, newest first, at most 500. commit: the commit or its"
        " beginning; empty: any commit. with_changes: something differed from the commit.",
        """
SELECT attempts.started_at, tasks.title, attempts.task_id, attempts.attempt, attempts.status, attempts.duration,
  attempts.graph_id, attempts.run, runners.git_commit, runners.git_branch, runners.git_dirty AS with_changes,
  runners.user || '@' || runners.host AS who, attempts.runner
FROM (
  SELECT task_id, attempt FROM attempts
  WHERE runner IN (
    SELECT position FROM runners
    WHERE git_commit IS NOT NULL AND substr(git_commit, 1, length(trim(:commit))) = lower(trim(:commit))
  )
  ORDER BY position DESC
  LIMIT 500
)
JOIN attempts USING (task_id, attempt)
JOIN tasks ON tasks.id = attempts.task_id
JOIN runners ON runners.position = attempts.runner
ORDER BY attempts.position DESC""",
        ("commit",),
    ),
    "who_ran_what": Query(
        "Who ran what",
        "Every process that recorded something, newest first, at most 500: who, with which command, and how much."
        " who: only where user@host holds this; empty: everybody. since: a day or a time, UTC; empty: the last 7 days.",
        f"""
SELECT runners.started_at, runners.user || '@' || runners.host AS who, runners.command, runners.cwd,
  runners.git_commit, coalesce(tried.attempts, 0) AS attempts, coalesce(tried.failed, 0) AS failed_attempts,
  coalesce(ran.runs, 0) AS runs, tried.last_at, runners.position AS runner
FROM runners
LEFT JOIN (
  SELECT runner, count(*) AS attempts, sum(status = 'failed') AS failed, max(finished_at) AS last_at
  FROM attempts GROUP BY runner
) AS tried ON tried.runner = runners.position
LEFT JOIN (SELECT runner, count(*) AS runs FROM runs GROUP BY runner) AS ran ON ran.runner = runners.position
WHERE runners.started_at >= {_SINCE} AND runners.user || '@' || runners.host LIKE {_like("who")}
ORDER BY runners.position DESC
LIMIT 500""",
        ("who", "since"),
    ),
    "interrupted_and_owed": Query(
        "Interrupted and owed",
        "Runs and tasks that are running or interrupted, and finally tasks that have not ended though their run has,"
        " by what the rows say, at most 500 of each. Rows cannot know whether a process still lives: 'running' may be"
        " one that was killed. The page 'What ran in this ledger' asks for that, and has the commands to go on with.",
        f"""
SELECT * FROM (
  SELECT 'run' AS what, graphs.title, NULL AS task_id, runs.graph_id, runs.run, runs.status,
    runs.started_at, runs.runner, runs.position
  FROM runs JOIN graphs ON graphs.id = runs.graph_id
  WHERE runs.status IN ('running', 'interrupted') AND runs.run = graphs.runs AND graphs.is_deleted = 0
  ORDER BY runs.position DESC LIMIT 500
)
UNION ALL
SELECT * FROM (
  SELECT 'task', tasks.title, attempts.task_id, attempts.graph_id, attempts.run, tasks.status,
    attempts.started_at, attempts.runner, attempts.position
  FROM tasks JOIN attempts ON attempts.task_id = tasks.id AND attempts.attempt = tasks.attempts
  WHERE tasks.status IN ('running', 'interrupted') AND tasks.is_deleted = 0
  ORDER BY attempts.position DESC LIMIT 500
)
UNION ALL
SELECT * FROM (
  SELECT 'owed finally task', tasks.title, tasks.id, runs.graph_id, runs.run, tasks.status,
    runs.started_at, runs.runner, runs.position
  FROM graphs
  JOIN runs ON runs.graph_id = graphs.id AND runs.run = graphs.runs
  JOIN graph_tasks ON graph_tasks.graph_id = graphs.id AND graph_tasks.is_finally = 1
  JOIN tasks ON tasks.id = graph_tasks.task_id
  WHERE runs.status <> 'running' AND tasks.status NOT IN {_ENDED} AND graphs.is_deleted = 0 AND tasks.is_deleted = 0
  ORDER BY runs.position DESC LIMIT 500
)""",
    ),
    "cost_per_day": Query(
        "What agents cost per day",
        "Prompt and agent tasks per day (UTC) and model: attempts, tokens, premium requests and AI credits, as far as"
        " agents said. since: a day, UTC; empty: the last 7 days. model: only models whose name holds this; empty:"
        " all.",
        f"""{_SPENT}
SELECT substr(spent.started_at, 1, 10) AS day, spent.model, count(DISTINCT spent.task_id) AS tasks,
  count(*) AS attempts, {_SUMS}
FROM spent
WHERE coalesce(spent.model, '') LIKE {_like("model")}
GROUP BY 1, 2
ORDER BY 1 DESC, ai_credits DESC, input_tokens DESC
LIMIT 1000""",
        ("since", "model"),
    ),
    "cost_per_run": Query(
        "What agents cost per run",
        "Runs of graphs with prompt or agent tasks, newest first, at most 500: attempts, tokens, premium requests and"
        " AI credits, as far as agents said. since: a day or a time, UTC; empty: the last 7 days. graph: only graphs"
        " whose title holds this; empty: all.",
        f"""{_SPENT}
SELECT max(runs.started_at) AS started_at, graphs.title, spent.graph_id, spent.run, runs.status,
  count(DISTINCT spent.task_id) AS tasks, count(*) AS attempts, {_SUMS}
FROM spent
JOIN graphs ON graphs.id = spent.graph_id
JOIN runs ON runs.graph_id = spent.graph_id AND runs.run = spent.run
WHERE graphs.title LIKE {_like("graph")}
GROUP BY spent.graph_id, spent.run
ORDER BY max(runs.position) DESC
LIMIT 500""",
        ("since", "graph"),
    ),
    "cost_per_task": Query(
        "What agents cost per task",
        "Prompt and agent tasks, the most expensive first, at most 500: attempts, tokens, premium requests and AI"
        " credits, as far as agents said. since: a day or a time, UTC; empty: the last 7 days. name: only tasks whose"
        " name or title holds this; empty: all.",
        f"""{_SPENT}
SELECT tasks.title, tasks.name, spent.task_id, tasks.status, max(spent.model) AS model, count(*) AS attempts,
  sum(spent.duration) AS total_seconds, {_SUMS}, max(spent.started_at) AS last_at
FROM spent
JOIN tasks ON tasks.id = spent.task_id
WHERE tasks.name LIKE {_like("name")} OR tasks.title LIKE {_like("name")}
GROUP BY spent.task_id
ORDER BY ai_credits DESC, premium_requests DESC, input_tokens DESC
LIMIT 500""",
        ("since", "name"),
    ),
    "what_agents_did": Query(
        "What agents did",
        "Calls of tools by agents, newest first, at most 500: what for, how they ended, and which files they changed."
        " since: a day or a time, UTC; empty: the last 7 days. tool: only that tool. holds: only calls whose arguments"
        " or files hold this; empty: all.",
        f"""
SELECT tool_calls.started_at, tasks.title, tool_calls.task_id, tool_calls.attempt, tool_calls.tool,
  substr({_CALLED_FOR}, 1, 400) AS called_for, tool_calls.status, tool_calls.exit_code, tool_calls.duration,
  tool_calls.files, tool_calls.error, tool_calls.agent, tool_calls.position
FROM tool_calls
JOIN tasks ON tasks.id = tool_calls.task_id
WHERE tool_calls.started_at >= {_SINCE} AND (trim(:tool) = '' OR tool_calls.tool = trim(:tool))
  AND (trim(:holds) = '' OR tool_calls.arguments LIKE {_like("holds")} OR tool_calls.files LIKE {_like("holds")})
ORDER BY tool_calls.position DESC
LIMIT 500""",
        ("since", "tool", "holds"),
    ),
    "what_agents_were_allowed": Query(
        "What agents were allowed",
        "What agents asked permission for, newest first, at most 500: what was decided, and by which rule or whom."
        " since: a day or a time, UTC; empty: the last 7 days. decision: approved, denied, unanswered, or open (nobody"
        " has decided yet); empty: all. holds: only where what it is about, or what decided, holds this; empty: all.",
        f"""
SELECT permissions.requested_at, tasks.title, permissions.task_id, permissions.attempt, permissions.kind,
  permissions.subject, permissions.decision, permissions.decided_by, permissions.feedback, permissions.intention,
  permissions.agent, permissions.position
FROM permissions
JOIN tasks ON tasks.id = permissions.task_id
WHERE permissions.requested_at >= {_SINCE}
  AND (trim(:decision) = '' OR coalesce(permissions.decision, 'open') = lower(trim(:decision)))
  AND (permissions.subject LIKE {_like("holds")} OR coalesce(permissions.decided_by, '') LIKE {_like("holds")})
ORDER BY permissions.position DESC
LIMIT 500""",
        ("since", "decision", "holds"),
    ),
    "events_between": Query(
        "Events between two times",
        "What was recorded between two times, newest first, at most 500. since and until: a day or a time, UTC, such"
        " as 2026-11-24 or 2026-11-24 08:00, and all of it; empty: from 7 days ago, until now. type: only events of"
        " this type, such as TaskFailed; empty: all but what was printed.",
        f"""
SELECT position, recorded_at, type, stream, task_id, graph_id, runner, cause, data
FROM events
WHERE recorded_at >= {_SINCE} AND recorded_at <= {_UNTIL}
  AND (type = trim(:type) OR trim(:type) = '' AND type <> 'TaskOutput')
ORDER BY position DESC
LIMIT 500""",
        ("since", "until", "type"),
    ),
    "search": Query(
        "Search titles, commands and errors",
        "Tasks and graphs, newest first, at most 100 of each, whose title, name, command or error holds a text; empty:"
        " all. The page 'Search this ledger' also searches what was printed.",
        f"""
SELECT * FROM (
  SELECT 'task' AS what, title, id AS task_id, NULL AS graph_id, status, created_at, name, payload, error
  FROM tasks
  WHERE is_deleted = 0 AND (
    title LIKE {_like("q")} OR name LIKE {_like("q")} OR payload LIKE {_like("q")} OR error LIKE {_like("q")}
  )
  ORDER BY created_at DESC LIMIT 100
)
UNION ALL
SELECT * FROM (
  SELECT 'graph', title, NULL, id, status, created_at, NULL, source_path, NULL
  FROM graphs WHERE is_deleted = 0 AND title LIKE {_like("q")}
  ORDER BY created_at DESC LIMIT 100
)""",
        ("q",),
    ),
}
"""The queries that come with every ledger, by name."""


async def _answerable(datasette: Any, database: str) -> dict[str, Query]:
    """Return the queries that a ledger can answer: one of an older ttasks lacks tables and columns that some read."""
    try:
        ledger = await asyncio.to_thread(ledger_of, datasette, database)
    except TtasksError:  # its own page says why it can't be read
        return QUERIES
    if ledger is None or ledger.older_version is None:
        return QUERIES

    def answered(connection: Any) -> dict[str, Query]:
        return {name: query for name, query in QUERIES.items() if _can_answer(connection, query)}

    found: dict[str, Query] = await datasette.databases[database].execute_fn(answered)
    return found


def _can_answer(connection: Any, query: Query) -> bool:
    try:
        connection.execute(f"EXPLAIN {query.sql}", dict.fromkeys(query.parameters, ""))
    except sqlite3.OperationalError:  # there is no such table or column
        return False
    return True


async def canned(datasette: Any, database: str) -> dict[str, dict[str, Any]]:
    """Return the queries as Datasette 0.65 wants them, but for those whose name its metadata has for another.

    They are new ones each time: Datasette writes into them.
    """
    own = datasette.metadata("queries", database=database, fallback=False) or {}
    return {
        name: {
            "sql": query.sql.strip(),
            "title": query.title,
            "description": query.description,
            "params": list(query.parameters),
            "hide_sql": True,
        }
        for name, query in (await _answerable(datasette, database)).items()
        if name not in own
    }


async def add(datasette: Any, database: str) -> None:
    """Add the queries to a ledger in Datasette 1.0, but for those whose name its configuration has for another."""
    for name, query in (await _answerable(datasette, database)).items():
        found = await datasette.get_query(database, name)
        if found is not None and found.source != "plugin":
            continue
        await datasette.add_query(
            database,
            name,
            query.sql.strip(),
            title=query.title,
            description=query.description,
            parameters=query.parameters,
            hide_sql=True,
            is_trusted=True,
        )
