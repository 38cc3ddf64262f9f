"""What a store is: two collections, by id."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol, TypeVar, runtime_checkable

from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.public import public

Kept = TypeVar("Kept")


class KeptById(Protocol[Kept]):
    """A mutable mapping by id, as far as a store needs one: any MutableMapping will do."""

    def __getitem__(self, key: str, /) -> Kept: ...
    def __setitem__(self, key: str, kept: Kept, /) -> None: ...
    def __delitem__(self, key: str, /) -> None: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def get(self, key: str, /) -> Kept | None: ...
    def keys(self) -> Collection[str]: ...
    def values(self) -> Collection[Kept]: ...
    def items(self) -> Collection[tuple[str, Kept]]: ...


class TaskCollection(KeptById[Task], Protocol):
    """Tasks by id."""

    def save(self, task: Task, /) -> None:
        """Record what is pending of `task`; nothing when nothing is."""

    def cancel(self, task_id: str, /) -> None:
        """Cancel the task, or ask whoever runs it to."""


class GraphCollection(KeptById[TaskGraph], Protocol):
    """Graphs by id."""

    def save(self, graph: TaskGraph, /) -> None:
        """Record what is pending of `graph` and of its tasks, in one commit; nothing when nothing is."""


@runtime_checkable
class Store(Protocol):
    """Anything with a collection of tasks and one of graphs: mutable mappings by id, that can `save`.

    One of the library's own is a ledger. Any other has to have only these two.
    """

    @property
    def tasks(self) -> TaskCollection:
        """Tasks by id."""

    @property
    def graphs(self) -> GraphCollection:
        """Graphs by id."""


public(Store)
