"""What a store is: two collections, by id."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Protocol, runtime_checkable

from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task


class TaskCollection(MutableMapping[str, Task]):
    """Tasks by id."""

    def save(self, task: Task) -> None:
        """Record what is pending of `task`; nothing when nothing is."""
        raise NotImplementedError

    def cancel(self, task_id: str) -> None:
        """Cancel the task, or ask whoever runs it to."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError


class GraphCollection(MutableMapping[str, TaskGraph]):
    """Graphs by id."""

    def save(self, graph: TaskGraph) -> None:
        """Record what is pending of `graph` and of its tasks, in one commit; nothing when nothing is."""
        raise NotImplementedError


@runtime_checkable
class Store(Protocol):
    """Anything with a collection of tasks and one of graphs."""

    @property
    def tasks(self) -> TaskCollection:
        """Tasks by id."""

    @property
    def graphs(self) -> GraphCollection:
        """Graphs by id."""


Store.__module__ = "ttasks"
