"""What a handle was given and its ledger withholds: it stays on the handle, and runs (SPEC §8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ttasks.state.record import evolve
from ttasks.state.task import TaskState


class Given:
    """What one handle was given.

    `env` are values of variables; `missing_env` names those it has no value of. `withheld` are other variables, the
    secret ones of which are not recorded either: what handlers know.
    """

    __slots__ = ("_texts", "env", "missing_env", "withheld")

    def __init__(self, env: Mapping[str, str] | None, missing_env: tuple[str, ...] = ()) -> None:
        self.env = env
        self.missing_env = missing_env
        self.withheld: Mapping[str, str] = {}
        self._texts: dict[str, tuple[str, str]] = {}  # by field: what the ledger has, and what was given

    def copy(self) -> Given:
        """Return the same for another handle."""
        twin = Given(self.env, self.missing_env)
        twin._texts = dict(self._texts)
        return twin

    @property
    def secrets(self) -> Mapping[str, str]:
        """All variables that may hold what is not to be recorded."""
        return {**(self.env or {}), **self.withheld} if self.withheld else self.env or {}

    def missing(self, view: TaskState) -> tuple[str, ...]:
        """Return what it takes to run the task that the handle, which shows `view`, does not have."""
        texts = tuple(field for field in ("payload", "cwd") if field in (view.redacted or ()))
        return (*texts, *(f"env[{name!r}]" for name in self.missing_env))

    def take(self, view: TaskState, texts: Mapping[str, str], env: Mapping[str, str]) -> TaskState:
        """Take what was missing; return what the handle then shows."""
        self._texts.update((field, (getattr(view, field), text)) for field, text in texts.items())
        if env:
            self.env = {**(self.env or {}), **env}
            self.missing_env = tuple(name for name in self.missing_env if name not in env)
        return self.with_texts(view, view, None)

    def with_env(self, state: TaskState) -> TaskState:
        """Return `state` with the values that were given, in place of digests."""
        if not self.env:
            return state
        digests = {name: value for name, value in (state.env_digests or {}).items() if name not in self.env}
        return evolve(state, env={**(state.env or {}), **self.env}, env_digests=digests or None)

    def with_texts(self, state: TaskState, view: TaskState, redact: Callable[[str], str] | None) -> TaskState:
        """Return `state`, as a ledger has it, with the texts that were given in place of what it has redacted of them.

        Args:
            state: what is recorded.
            view: what the handle showed when that was recorded.
            redact: how it was redacted; None: not at all.
        """
        redacted = state.redacted or ()
        if redact is not None:
            for field in set(redacted) - set(view.redacted or ()):
                recorded, mine = getattr(state, field), getattr(view, field)
                if mine is not None and redact(mine) == recorded:
                    self._texts[field] = recorded, mine
        kept = {
            field: text
            for field, (recorded, text) in self._texts.items()
            if field in redacted and getattr(state, field) == recorded
        }
        return evolve(state, **kept, redacted=tuple(field for field in redacted if field not in kept) or None)
