"""The same as failing.yaml, in Python: fails on purpose, and cleans up all the same. Exits with 1."""

import os
import sys

from ttasks import RetryPolicy, SQLiteStore, Task, TaskExecutor, TaskGraph

fetch = Task.bash("echo three files fetched", title="fetch")
convert = Task.bash("echo converting; echo 'no space for the result' >&2; exit 3", title="convert")
publish = Task.bash("echo never printed", title="publish")
clean = Task.bash("echo removing what was fetched", title="clean")
tell = Task.bash("echo 'nobody to tell' >&2; exit 1", title="tell")

graph = TaskGraph(title="A run that fails")
graph.add(fetch)
graph.add(convert, after=[fetch], retry_policy=RetryPolicy(max_attempts=2, backoff=0.1))
graph.add(publish, after=[convert])
graph.add(clean, after=[publish], finally_=True)
graph.add(tell, after=[publish], finally_=True, required=False)

with SQLiteStore(os.environ.get("TTASKS_LEDGER") or ".ttasks/ledger.db") as store, TaskExecutor(store) as executor:
    graph.run(executor)

for task in graph:
    print(task.title, task.status, task.error or "")
sys.exit(0 if graph.ok else 1)
