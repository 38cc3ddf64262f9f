"""A runner inside an attempt of another one: whether that attempt was cancelled, or only has to end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ttasks.errors import TtasksError
from ttasks.events.facts import TaskStarted
from ttasks.log.reading import Readers
from ttasks.log.survivors import LEDGER, MARK, innermost


def is_cancelled_outside() -> bool:
    """True where somebody wants the attempt that this process is part of cancelled, or the run that it belongs to.

    The attempt's ledger says so, which this process knows by its environment. One that can't be read says nothing.
    """
    path = os.environ.get(LEDGER)
    ledger, _, position = innermost(os.environ.get(MARK, "")).rpartition(":")
    if not path or not position.isdigit():
        return False
    try:
        with contextlib.closing(Readers.open(Path(path))) as readers:
            return readers.ledger() == ledger and _is_asked_to_cancel(readers, int(position))
    except (TtasksError, OSError):
        return False


def _is_asked_to_cancel(readers: Readers, position: int) -> bool:
    started = next(readers.events(after=position - 1, limit=1), None)
    if started is None or not isinstance(started.fact, TaskStarted):
        return False
    graph = started.fact.graph
    streams = [started.stream, *([f"graph-{graph}"] if graph is not None else [])]
    return any(readers.is_asked_to_cancel(stream) for stream in streams)
