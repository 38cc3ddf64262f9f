-- How a task's processes are ended, whether what they leave behind is waited for, and how long a run took by a clock
-- that nobody can set.

ALTER TABLE tasks ADD COLUMN grace REAL NOT NULL DEFAULT 5.0;
ALTER TABLE tasks ADD COLUMN wait_for_output INTEGER NOT NULL DEFAULT 1;

ALTER TABLE runs ADD COLUMN duration REAL;

-- A run that has been in one runner's hands so far has no stretch behind it; of what older runs took nothing is known.
UPDATE runs SET duration = 0.0
WHERE status = 'running' AND NOT EXISTS (
  SELECT 1 FROM events
  WHERE events.stream = 'graph-' || runs.graph_id
    AND events.type = 'GraphRunInterrupted'
    AND events.position > runs.position
);
