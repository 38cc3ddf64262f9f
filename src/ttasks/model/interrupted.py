"""`Interrupted` and `Owed`: what runners that are gone left behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ttasks.public import public


@dataclass(frozen=True)
class Interrupted:
    """A run of a graph, or a task that ran by itself, that was interrupted and can go on.

    `kind` says what `id` is of; `run` is the number of the run (None: a task); `why` says what is known of the
    interruption, `heard_at` when it was last heard of (aware UTC; None: unknown). The rest are ids of tasks, in the
    graph's order: `running` are those that were running, or whose retry nobody waits for any more, and that will go
    on; `asking` those that wait for a person (`ttasks resolve`); `left` those that had not begun; `owed` the finally
    tasks that have not ended. `is_cancelled`: the run was cancelled, and only what is owed will run.
    """

    kind: Literal["graph", "task"]
    id: str
    title: str
    run: int | None
    why: str
    heard_at: datetime | None
    running: tuple[str, ...]
    asking: tuple[str, ...]
    left: tuple[str, ...]
    owed: tuple[str, ...]
    is_cancelled: bool

    @property
    def can_go_on(self) -> bool:
        """True unless all that is to be done is for a person to decide."""
        return self.kind == "graph" or bool(self.running)


@dataclass(frozen=True)
class Owed:
    """A finally task that has neither ended nor been cancelled by name, though its graph was run.

    `asks`: it was interrupted itself, and waits for a person.
    """

    graph_id: str
    task_id: str
    title: str
    asks: bool


public(Interrupted, Owed)
