"""How the environment differs from that of the run that is to go on: said before anything starts."""

from __future__ import annotations

from ttasks.cli.text import console
from ttasks.display import printable, short
from ttasks.stores.ledger import SQLiteStore


def say_what_differs(store: SQLiteStore, graph_id: str) -> None:
    """Print the names of variables that differ from those that a graph's run was begun with."""
    change = store.environment_change(graph_id)
    if change is None:
        said = f"the environment can't be compared with that of graph {short(graph_id)}: there is no note of it"
    elif change:
        kinds = (("not set any more", change.missing), ("changed", change.changed), ("new", change.new))
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in kinds if names)
        said = f"the environment is not that of graph {short(graph_id)}, and counts as it is now. {listed}"
    else:
        return
    console().print(printable(said))
