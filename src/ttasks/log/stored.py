"""Long texts of an attempt, which stay in the ledger until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ttasks.errors import LedgerError
from ttasks.events.facts import TaskFact, TaskOutput, TaskSucceeded
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers

_TYPES: Final = (TaskOutput.__name__, TaskSucceeded.__name__)


class StoredAttempt:
    """Where the texts of one attempt are: in its ledger, and with its runner until they are recorded.

    Args:
        readers: the reading side of the ledger; the file is opened for each reading once its store was closed.
        ledger: the ledger's id.
        task_id: the task's.
        attempt: the attempt's number.
        position: that of its TaskStarted.

    `unwritten` returns the facts that are not recorded, oldest first. As long as facts are on their way into the
    ledger, it may return such as are recorded by now.
    """

    __slots__ = ("_attempt", "_ledger", "_position", "_readers", "_stream", "unwritten")

    def __init__(self, readers: Readers, ledger: str, task_id: str, attempt: int, position: int) -> None:
        self._readers = readers
        self._ledger = ledger
        self._stream = f"task-{task_id}"
        self._attempt = attempt
        self._position = position
        self.unwritten: Callable[[], Sequence[TaskFact]] = tuple

    def facts(self) -> Iterator[TaskOutput | TaskSucceeded]:
        """Yield its facts that hold texts, oldest first; one that is recorded meanwhile may come twice, at the end.

        Raises:
            LedgerError: the file is gone, is another ledger by now, or can't be read.
        """
        unwritten = self.unwritten()  # before the ledger is read, or what is recorded in between would be in neither
        yield from self._recorded()
        for fact in unwritten:
            if isinstance(fact, TaskOutput | TaskSucceeded):
                yield fact

    def _recorded(self) -> Iterator[TaskOutput | TaskSucceeded]:
        path = self._readers.path
        try:
            start = next(self._readers.events(after=self._position - 1, limit=1), None)
            if self._readers.ledger() != self._ledger or start is None or start.stream != self._stream:
                raise LedgerError(f"{path} is another ledger by now; put the one with the id {self._ledger} back")
            for event in self._readers.matching(EventFilter(self._stream, types=_TYPES, after=self._position)):
                if isinstance(event.fact, TaskOutput | TaskSucceeded) and event.fact.attempt == self._attempt:
                    yield event.fact
        except LedgerError as error:
            is_hidden = isinstance(error.__cause__, OSError)  # it may well be there
            is_gone = path is not None and not is_hidden and not path.exists()
            raise self.lost(f"{path} is gone; put it back" if is_gone else str(error)) from error

    def lost(self, why: str) -> LedgerError:
        """Return the error that a text of the attempt can't be read, and why."""
        return LedgerError(f"what attempt {self._attempt} of {self._stream} printed is only in its ledger: {why}")


class StoredText:
    """A text that is read from the ledger when it is asked for: by `read`, `parts` or `str`.

    `characters` is its length. Pickled or copied it becomes the text itself.
    """

    __slots__ = ("_attempt", "characters")

    def __init__(self, attempt: StoredAttempt, characters: int) -> None:
        self._attempt = attempt
        self.characters = characters

    def parts(self) -> Iterator[str]:
        """Yield it, part by part.

        Raises:
            LedgerError: the file is gone, is another ledger by now, or lacks some of it.
        """
        raise NotImplementedError

    def read(self) -> str:
        """Return it; LedgerError as in `parts`."""
        return "".join(self.parts())

    def __str__(self) -> str:
        """Return it, or a sentence that says why it can't be read: the text of an error has to be there."""
        try:
            return self.read()
        except LedgerError as error:
            return f"({self.characters} characters: {error})"

    def __repr__(self) -> str:
        return f"<{self.characters} characters, in the ledger>"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.read(),)


class PrintedText(StoredText):
    """What an attempt printed to one stream: `count` chunks of those recorded, after the first `skipped` of them."""

    __slots__ = ("_count", "_skipped", "_stream")

    def __init__(self, attempt: StoredAttempt, characters: int, stream: str, skipped: int, count: int) -> None:
        super().__init__(attempt, characters)
        self._stream = stream
        self._skipped = skipped
        self._count = count

    def parts(self) -> Iterator[str]:
        passed, end = 0, self._skipped + self._count
        for fact in self._attempt.facts():
            if not isinstance(fact, TaskOutput):
                continue
            for stream, _, text in fact.chunks:
                if stream == self._stream:
                    passed += 1
                    if passed > self._skipped:
                        yield text
                    if passed == end:
                        return
        raise self._attempt.lost("some of it is missing there; `ttasks verify` says more")

    def __eq__(self, other: object) -> bool:
        mine = (self._attempt, self._stream, self._skipped, self._count)
        return isinstance(other, PrintedText) and mine == (
            other._attempt, other._stream, other._skipped, other._count,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self._attempt, self._stream, self._skipped, self._count))


class ReturnedText(StoredText):
    """The text that an attempt's handler returned."""

    __slots__ = ()

    def parts(self) -> Iterator[str]:
        for fact in self._attempt.facts():
            if isinstance(fact, TaskSucceeded) and fact.output is not None:
                yield fact.output
                return
        raise self._attempt.lost("it is missing there; `ttasks verify` says more")
