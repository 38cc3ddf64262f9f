"""A ttasks of the future, whose schema has one migration more: for tests of migrating, here and in other processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ttasks.log import event_log, files, migrate, transaction

MIGRATIONS = Path(__file__).parents[1] / "migrations"
OLDER = migrate.SCHEMA_VERSION
VERSION = OLDER + 1
NAME = f"{VERSION:04}_labels"
MIGRATION = """
-- Labels of tasks, and what is asked for most.
CREATE TABLE labels (task_id TEXT NOT NULL REFERENCES tasks (id), label TEXT NOT NULL) STRICT;

INSERT INTO labels SELECT id, 'made before there were labels' FROM tasks;

ALTER TABLE tasks ADD COLUMN priority INTEGER;

UPDATE tasks SET priority = length(title);

CREATE INDEX events_by_type ON events (type);

CREATE TRIGGER labels_are_never_changed BEFORE UPDATE ON labels
BEGIN SELECT RAISE(ABORT, 'labels are never changed'); END;
"""


def write_migrations(folder: Path, migration: str = MIGRATION) -> Path:
    """Write the migrations of the newer ttasks into a new folder, and return that."""
    folder.mkdir()
    for script in MIGRATIONS.glob("*.sql"):
        shutil.copy(script, folder)
    (folder / f"{NAME}.sql").write_text(migration, "utf-8")
    return folder


def upgrade_ttasks(folder: Path, set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Make this process one of the newer ttasks, with the migrations in `folder`."""
    for module in (migrate, files, event_log, transaction):
        assert module.SCHEMA_VERSION == OLDER  # type: ignore[attr-defined]
        set_attribute(module, "SCHEMA_VERSION", VERSION)
    set_attribute(migrate, "files", lambda _: folder)
