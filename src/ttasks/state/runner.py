"""What the events of a runner's stream mean: `RunnerState`, its row in `runners`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ttasks.errors import DamagedLedgerError, UnknownEventError
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact, RunnerDescribed, RunnerStarted
from ttasks.state.record import evolve


@dataclass(frozen=True)
class RunnerState:
    """A process that appended. `position` is that of its RunnerStarted, which every event of its names as `runner`."""

    position: int
    id: str
    host: str
    boot_id: str
    pid: int
    process_start: str
    user: str
    cwd: str
    command: tuple[str, ...]
    ttasks_version: str
    python_version: str
    platform: str
    started_at: datetime
    git_root: str | None = None
    git_commit: str | None = None
    git_branch: str | None = None
    git_dirty: bool | None = None


def apply(
    state: RunnerState | None,
    fact: Fact | OpaqueEvent,
    *,
    runner_id: str,
    position: int,
    recorded_at: datetime,
) -> RunnerState:
    """Return the runner after one more fact of its stream.

    Raises:
        UnknownEventError: it is of a type from the future that must not be passed over.
        DamagedLedgerError: it has no place in a runner's stream, or not there.
    """
    if isinstance(fact, RunnerStarted) and state is None:
        return RunnerState(position=position, id=runner_id, started_at=recorded_at, **vars(fact))
    if isinstance(fact, RunnerDescribed) and state is not None:
        return evolve(state, **vars(fact))
    if isinstance(fact, OpaqueEvent):
        if state is None or not fact.is_ignorable:
            raise UnknownEventError(fact.type, fact.type_version, f"runner-{runner_id}", position=position)
        return state
    raise DamagedLedgerError(f"{type(fact).__name__} at {position} can't follow in the stream of runner {runner_id}")
