"""What a person decides from outside: cancelling what runs somewhere else."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ttasks.cli.app import Hint
from ttasks.cli.look import find
from ttasks.cli.text import console
from ttasks.cli.withheld import say_how_to_go_on, say_step
from ttasks.display import printable, short
from ttasks.errors import NotFoundError
from ttasks.events.status import RunStatus
from ttasks.log.reading import Readers
from ttasks.state.decide import Resolution
from ttasks.stores.interrupted import Leftovers
from ttasks.stores.ledger import SQLiteStore


def cancel_by_id(path: Path, part: str, hint: Hint) -> None:
    """Cancel the task, or the run of the graph, that `part` names, and say what that came to."""
    out = console()
    table, id_ = find(Readers.open(path), part)  # before anything is opened for writing
    with SQLiteStore(path) as store:
        if id_ not in (store.graphs if table == "graphs" else store.tasks):
            raise NotFoundError(f"{id_} was deleted: there is nothing to cancel")
        if table == "graphs":
            store.graphs.cancel(id_)
            if any(work.id == id_ for work in store.interrupted()):
                owed = hint(f"resume {short(id_)}")
                out.print(f"asked for: graph {id_} was interrupted; {owed} runs its finally tasks, and closes it")
                return
            status = store.graphs[id_].run_status
            if status is not RunStatus.RUNNING:
                out.print(f"too late: the run of graph {id_} has ended meanwhile, as {status}")
                return
            out.print(f"asked for: the run of graph {id_} is cancelled by whoever runs it; finally tasks still run")
            return
        before = store.tasks[id_]
        store.tasks.cancel(id_)
        after = store.tasks[id_]
        name = printable(after.title or after.id)
        if before.status.is_sink:
            out.print(f"nothing to do: task '{name}' is already {before.status}")
        elif after.is_cancelled:
            out.print(f"cancelled: task '{name}'")
        else:
            out.print(f"asked for: task '{name}' is cancelled by whoever runs it")


def resolve_by_id(path: Path, part: str, answer: str, note: str | None, hint: Hint) -> None:
    """Record what an interrupted task counts as, and say how to carry on."""
    out = console()
    table, id_ = find(Readers.open(path), part)  # before anything is opened for writing
    if table != "tasks":
        raise NotFoundError(
            f"{id_} is a graph: what is resolved is a task; {hint(f'show {short(id_)}')} lists its tasks"
        )
    with SQLiteStore(path) as store:
        if id_ not in store.tasks:
            raise NotFoundError(f"{id_} was deleted: there is nothing to resolve")
        store.tasks.resolve(id_, cast(Resolution, answer), note=note)
        task = store.tasks[id_]
        counts = "may be run again" if answer == "rerun" else f"counts as {answer}"
        out.print(f"recorded: task '{printable(task.title or id_)}' {counts}")
        left, attempts = Leftovers(store._readers), store._readers.attempts(id_)
        graph_id = attempts[-1].graph if attempts else None
        if graph_id is None or graph_id not in store.graphs:
            steps = left.steps_of_task(task._view)
        else:
            steps = left.steps_of_graph(graph_id)
            if not steps:
                out.print("Every task of its graph has succeeded: nothing is left to do")
        for step in steps:
            if step.verb == "cancel":
                when = "Its graph still runs. Carry on with it when its run has ended"
                say_how_to_go_on(store._readers, step.id, "retry", when, hint)
            else:
                what = "Another task waits for a person" if step.verb == "resolve" else step.why
                say_step(store._readers, step, what, hint)
