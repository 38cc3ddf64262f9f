-- What agents did inside attempts, what their turns cost, and the word by which programs know what went wrong.

ALTER TABLE tasks ADD COLUMN result_error_code TEXT;

ALTER TABLE attempts ADD COLUMN error_code TEXT;
ALTER TABLE attempts ADD COLUMN session TEXT;
ALTER TABLE attempts ADD COLUMN model TEXT;
ALTER TABLE attempts ADD COLUMN premium_requests REAL;
ALTER TABLE attempts ADD COLUMN nano_aiu REAL;
ALTER TABLE attempts ADD COLUMN input_tokens INTEGER;
ALTER TABLE attempts ADD COLUMN output_tokens INTEGER;

CREATE TABLE tool_calls (
  position INTEGER PRIMARY KEY REFERENCES events (position),
  task_id TEXT NOT NULL REFERENCES tasks (id),
  attempt INTEGER NOT NULL,
  call TEXT NOT NULL,
  tool TEXT NOT NULL,
  status TEXT NOT NULL,
  arguments TEXT,
  server TEXT,
  parent TEXT,
  agent TEXT,
  started_at TEXT NOT NULL,
  finished_at TEXT,
  duration REAL,
  exit_code INTEGER,
  error TEXT,
  error_length INTEGER,
  files TEXT,
  end_position INTEGER REFERENCES events (position)
) STRICT;

CREATE INDEX tool_calls_of_attempts ON tool_calls (task_id, attempt);

CREATE TABLE permissions (
  position INTEGER PRIMARY KEY REFERENCES events (position),
  task_id TEXT NOT NULL REFERENCES tasks (id),
  attempt INTEGER NOT NULL,
  request TEXT NOT NULL,
  call TEXT,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  intention TEXT,
  agent TEXT,
  decision TEXT,
  decided_by TEXT,
  feedback TEXT,
  requested_at TEXT NOT NULL,
  decided_at TEXT
) STRICT;

CREATE INDEX permissions_of_attempts ON permissions (task_id, attempt);

CREATE TABLE model_calls (
  position INTEGER PRIMARY KEY REFERENCES events (position),
  task_id TEXT NOT NULL REFERENCES tasks (id),
  attempt INTEGER NOT NULL,
  model TEXT NOT NULL,
  agent TEXT,
  call TEXT,
  input_tokens INTEGER,
  output_tokens INTEGER,
  cache_read_tokens INTEGER,
  cache_write_tokens INTEGER,
  reasoning_tokens INTEGER,
  duration REAL,
  multiplier REAL,
  nano_aiu REAL,
  initiator TEXT,
  finish_reason TEXT,
  called_at TEXT NOT NULL
) STRICT;

CREATE INDEX model_calls_of_attempts ON model_calls (task_id, attempt);
