"""What a person decides from outside: cancelling what runs somewhere else."""

from __future__ import annotations

from pathlib import Path

from ttasks.cli.look import find
from ttasks.cli.text import console, printable
from ttasks.errors import NotFoundError
from ttasks.log.reading import Readers
from ttasks.stores.ledger import SQLiteStore


def cancel_by_id(path: Path, part: str) -> None:
    """Cancel the task, or the run of the graph, that `part` names, and say what that came to."""
    out = console()
    table, id_ = find(Readers.open(path), part)  # before anything is opened for writing
    with SQLiteStore(path) as store:
        if id_ not in (store.graphs if table == "graphs" else store.tasks):
            raise NotFoundError(f"{id_} was deleted: there is nothing to cancel")
        if table == "graphs":
            store.graphs.cancel(id_)
            out.print(f"asked for: the run of graph {id_} is cancelled by whoever runs it; finally tasks still run")
            return
        before = store.tasks[id_]
        store.tasks.cancel(id_)
        after = store.tasks[id_]
        name = printable(after.title or after.id)
        if before.status.is_sink:
            out.print(f"nothing to do: task '{name}' is {before.status} already")
        elif after.is_cancelled:
            out.print(f"cancelled: task '{name}'")
        else:
            out.print(f"asked for: task '{name}' is cancelled by whoever runs it")
