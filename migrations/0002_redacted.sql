-- Which texts of a task hold *** in place of a secret, and so can't be restored: a JSON list of columns.

ALTER TABLE tasks ADD COLUMN redacted TEXT;
