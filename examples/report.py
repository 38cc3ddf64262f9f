"""Print what the latest run in a ledger came to: the ledger is one SQLite file, so sqlite3 is all it takes."""

import os
import sqlite3
from contextlib import closing

QUERY = """
SELECT tasks.name, tasks.status, attempts.attempt, attempts.duration, attempts.returncode
FROM graph_tasks
JOIN tasks ON tasks.id = graph_tasks.task_id
LEFT JOIN attempts ON attempts.task_id = tasks.id
WHERE graph_tasks.graph_id = (SELECT graph_id FROM runs ORDER BY position DESC LIMIT 1)
ORDER BY graph_tasks.place, attempts.attempt
"""

path = os.environ.get("TTASKS_LEDGER") or ".ttasks/ledger.db"
with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
    for name, status, attempt, duration, code in ledger.execute(QUERY):
        took = f"{duration:.2f} s" if duration is not None else "-"
        print(f"{name:<10} {status:<10} attempt {attempt or '-'}  {took:<8} exit code {'-' if code is None else code}")
