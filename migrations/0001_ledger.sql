-- The log. Everything below it can be dropped and made again from it.

CREATE TABLE events (
  position INTEGER PRIMARY KEY,
  stream TEXT NOT NULL,
  version INTEGER NOT NULL,
  type TEXT NOT NULL,
  type_version INTEGER NOT NULL,
  recorded_at TEXT NOT NULL,
  runner INTEGER,
  cause INTEGER,
  data TEXT NOT NULL CHECK (json_valid(data)),
  hash BLOB NOT NULL CHECK (length(hash) = 32),
  task_id TEXT GENERATED ALWAYS AS (CASE WHEN stream LIKE 'task-%' THEN substr(stream, 6) END) VIRTUAL,
  graph_id TEXT GENERATED ALWAYS AS (CASE WHEN stream LIKE 'graph-%' THEN substr(stream, 7) END) VIRTUAL,
  UNIQUE (stream, version)
) STRICT;

CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;

CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;

-- Also what stops INSERT OR REPLACE, which no trigger against UPDATE or DELETE sees.
CREATE TRIGGER events_are_only_appended BEFORE INSERT ON events
WHEN NEW.position <> coalesce((SELECT max(position) FROM events), 0) + 1
  OR NEW.version <> coalesce((SELECT max(version) FROM events WHERE stream = NEW.stream), 0) + 1
BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;

-- Rows of states. Times are UTC (ISO 8601), durations and time-outs seconds.

CREATE TABLE runners (
  position INTEGER PRIMARY KEY REFERENCES events (position),
  id TEXT NOT NULL,
  user TEXT NOT NULL,
  host TEXT NOT NULL,
  pid INTEGER NOT NULL,
  cwd TEXT NOT NULL,
  command TEXT NOT NULL,
  started_at TEXT NOT NULL,
  ttasks_version TEXT NOT NULL,
  python_version TEXT NOT NULL,
  platform TEXT NOT NULL,
  git_root TEXT,
  git_commit TEXT,
  git_branch TEXT,
  git_dirty INTEGER,
  boot_id TEXT NOT NULL,
  process_start TEXT NOT NULL
) STRICT;

CREATE TABLE tasks (
  id TEXT PRIMARY KEY,
  title TEXT NOT NULL,
  status TEXT NOT NULL,
  type TEXT NOT NULL,
  name TEXT NOT NULL,
  payload TEXT NOT NULL,
  description TEXT NOT NULL,
  created_at TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  error TEXT,
  error_length INTEGER,
  blocked_by TEXT REFERENCES tasks (id),
  timeout REAL,
  cwd TEXT,
  env TEXT,
  env_digests TEXT,
  on_interrupted TEXT NOT NULL,
  derived_from TEXT REFERENCES tasks (id),
  redacted TEXT,
  running_attempt INTEGER,
  retry INTEGER NOT NULL,
  retry_due_at TEXT,
  cancel_requested_by TEXT,
  interruptions INTEGER NOT NULL,
  resolution TEXT,
  is_deleted INTEGER NOT NULL,
  version INTEGER NOT NULL,
  result_status TEXT,
  result_attempt INTEGER,
  result_started_at TEXT,
  result_finished_at TEXT,
  result_duration REAL,
  result_error TEXT,
  result_error_length INTEGER,
  result_returncode INTEGER,
  result_reason TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
  task_id TEXT NOT NULL REFERENCES tasks (id),
  attempt INTEGER NOT NULL,
  status TEXT NOT NULL,
  handler TEXT NOT NULL,
  started_at TEXT NOT NULL,
  finished_at TEXT,
  duration REAL,
  returncode INTEGER,
  reason TEXT,
  exception TEXT,
  error TEXT,
  error_length INTEGER,
  retry INTEGER NOT NULL,
  graph_id TEXT REFERENCES graphs (id),
  run INTEGER,
  runner INTEGER NOT NULL REFERENCES runners (position),
  pid INTEGER,
  process_start TEXT,
  position INTEGER NOT NULL REFERENCES events (position),
  PRIMARY KEY (task_id, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE graphs (
  id TEXT PRIMARY KEY,
  title TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at TEXT NOT NULL,
  runs INTEGER NOT NULL,
  source_path TEXT,
  source_sha256 TEXT,
  max_workers INTEGER,
  derived_from TEXT REFERENCES graphs (id),
  cancel_requested_by TEXT,
  errors TEXT NOT NULL,
  is_deleted INTEGER NOT NULL,
  version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE graph_tasks (
  graph_id TEXT NOT NULL REFERENCES graphs (id),
  place INTEGER NOT NULL,
  task_id TEXT NOT NULL REFERENCES tasks (id),
  is_finally INTEGER NOT NULL,
  is_required INTEGER NOT NULL,
  retry_policy TEXT,
  PRIMARY KEY (graph_id, place)
) STRICT, WITHOUT ROWID;

CREATE TABLE graph_dependencies (
  graph_id TEXT NOT NULL REFERENCES graphs (id),
  task_id TEXT NOT NULL REFERENCES tasks (id),
  place INTEGER NOT NULL,
  dependency_id TEXT NOT NULL REFERENCES tasks (id),
  PRIMARY KEY (graph_id, task_id, place)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
  graph_id TEXT NOT NULL REFERENCES graphs (id),
  run INTEGER NOT NULL,
  status TEXT NOT NULL,
  started_at TEXT NOT NULL,
  finished_at TEXT,
  max_workers INTEGER NOT NULL,
  cancel_requested_by TEXT,
  why TEXT,
  errors TEXT NOT NULL,
  runner INTEGER NOT NULL REFERENCES runners (position),
  position INTEGER NOT NULL REFERENCES events (position),
  PRIMARY KEY (graph_id, run)
) STRICT, WITHOUT ROWID;

-- What was printed, a row a chunk: SELECT text FROM task_output WHERE task_id = … ORDER BY position, chunk.

CREATE VIEW task_output AS
SELECT
  events.task_id,
  json_extract(events.data, '$.attempt') AS attempt,
  events.position,
  chunk.key AS chunk,
  json_extract(chunk.value, '$[0]') AS stream,
  json_extract(chunk.value, '$[1]') AS at,
  json_extract(chunk.value, '$[2]') AS text
FROM events, json_each(events.data, '$.chunks') AS chunk
WHERE events.type = 'TaskOutput';
