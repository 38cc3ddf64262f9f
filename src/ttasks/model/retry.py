"""How often a failed task is tried again, and how long to wait in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial

from ttasks.events.facts import RetrySpec
from ttasks.model.callbacks import check_ran, check_runs_when_called
from ttasks.model.checks import FLOAT_MAX, check_number
from ttasks.public import public

RetryOn = tuple[type[BaseException], ...] | type[BaseException] | Callable[[BaseException], bool]


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a failed task is tried again. Cancelling is never retried.

    Args:
        max_attempts: total attempts, at least 1.
        backoff: seconds before the first retry.
        factor: what each further wait is multiplied by, at least 1.
        max_backoff: the longest wait in seconds; None for no limit.
        jitter: up to this share of each wait is added at random, from 0 to 1.
        retry_on: the exception types, or a predicate on the exception, that are worth another try; None for all.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range.
    """

    max_attempts: int = 1
    backoff: float = 0.0
    _: KW_ONLY
    factor: float = 1.0
    max_backoff: float | None = None
    jitter: float = 0.0
    retry_on: RetryOn | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise TypeError(f"max_attempts must be an int, got {type(self.max_attempts).__name__}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        check_number(self.backoff, "backoff")
        check_number(self.factor, "factor", least=1.0)
        check_number(self.jitter, "jitter")
        if self.jitter > 1:
            raise ValueError(f"jitter must be between 0 and 1, got {self.jitter!r}")
        if self.max_backoff is not None:
            check_number(self.max_backoff, "max_backoff")
        if self.retry_on is not None and not self._is_filter(self.retry_on):
            raise TypeError("retry_on must be exception types or a callable")
        if not isinstance(self.retry_on, tuple | type | None):
            check_runs_when_called(self.retry_on, "retry_on")

    @staticmethod
    def _is_filter(retry_on: object) -> bool:
        kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        if all(isinstance(kind, type) for kind in kinds):
            return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
        return callable(retry_on)

    def allows(self, error: BaseException) -> bool:
        """True when `retry_on` does not rule out another try after `error`."""
        if self.retry_on is None:
            return True
        if isinstance(self.retry_on, tuple | type):
            return isinstance(error, self.retry_on)
        answer = self.retry_on(error)
        check_ran(answer, "retry_on")
        return bool(answer)

    def delay_s(self, retry: int, chance: float) -> float:
        """Return the seconds to wait before retry number `retry` (from 1); `chance`, from 0 to 1, places the jitter."""
        if not self.backoff:
            return 0.0
        try:
            wait = self.backoff * self.factor ** (retry - 1)
        except OverflowError:
            wait = FLOAT_MAX
        if self.max_backoff is not None:
            wait = min(wait, self.max_backoff)
        return min(wait * (1 + self.jitter * chance), FLOAT_MAX)

    def spec(self) -> RetrySpec:
        """Return the policy as it is recorded: of `retry_on` only the names."""
        names: tuple[str, ...] | None = None
        if self.retry_on is not None:
            filters = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
            names = tuple(qualified_name(item) for item in filters)
        return RetrySpec(self.max_attempts, self.backoff, self.factor, self.max_backoff, self.jitter, names)

    @classmethod
    def of(cls, spec: RetrySpec) -> RetryPolicy:
        """Return the policy that was recorded, without its `retry_on`: a function can't be restored."""
        return cls(
            spec.max_attempts,
            spec.backoff,
            factor=spec.factor,
            max_backoff=spec.max_backoff,
            jitter=spec.jitter,
        )


def qualified_name(thing: object) -> str:
    """Return ``module.qualname`` of a function or type, of a partial that of what it calls, else that of its type."""
    while isinstance(thing, partial):
        thing = thing.func
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', repr(named))}"


public(RetryPolicy)
