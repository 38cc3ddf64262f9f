"""How often a failed task is tried again, and how long the wait is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from ttasks import RetryPolicy, Task, TaskContext, TaskExecutor, TaskType
from ttasks.model.retry import qualified_name


def test_by_default_a_task_is_tried_once_and_nothing_is_waited_for() -> None:
    policy = RetryPolicy()
    assert (policy.max_attempts, policy.backoff) == (1, 0.0)
    assert (policy.factor, policy.max_backoff, policy.jitter, policy.retry_on) == (1.0, None, 0.0, None)


@pytest.mark.parametrize("value", [True, False, 1.0, "3", None])
def test_the_number_of_attempts_is_an_int_and_no_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="max_attempts must be an int"):
        RetryPolicy(value)


@pytest.mark.parametrize("value", [0, -1])
def test_there_is_at_least_one_attempt(value: int) -> None:
    with pytest.raises(ValueError, match="max_attempts must be at least 1"):
        RetryPolicy(value)


@pytest.mark.parametrize("value", [True, "1", None, 1j])
def test_backoff_is_a_number_and_no_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="backoff must be a number"):
        RetryPolicy(2, value)


@pytest.mark.parametrize(
    "value",
    [
        -0.1,
        float("nan"),
        float("inf"),
        float("-inf"),
        -1,
        10**400,
    ],
)
def test_backoff_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match="backoff must be a finite non-negative number"):
        RetryPolicy(2, value)


@pytest.mark.parametrize("name", ["factor", "max_backoff", "jitter"])
@pytest.mark.parametrize("value", ["1", True, [1]])
def test_the_added_numbers_are_numbers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        RetryPolicy(2, **{name: value})


@pytest.mark.parametrize("name", ["factor", "max_backoff", "jitter"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_the_added_numbers_are_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        RetryPolicy(2, **{name: value})


@pytest.mark.parametrize("value", ["ValueError", 1, (ValueError, "x"), (int,), int])
def test_what_is_worth_another_try_is_told_by_exception_types_or_a_predicate(value: Any) -> None:
    with pytest.raises(TypeError, match="retry_on"):
        RetryPolicy(2, retry_on=value)


def test_the_added_fields_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        RetryPolicy(2, 0.0, 2.0)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["max_attempts", "backoff", "factor"])
def test_a_policy_is_frozen(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(RetryPolicy(), name, 2)


def test_policies_made_alike_are_equal() -> None:
    assert RetryPolicy(3, 1) == RetryPolicy(3, 1.0)
    assert RetryPolicy(3) != RetryPolicy(4)


def delays(policy: RetryPolicy, count: int, chance: float = 0.0) -> list[float]:
    return [policy.delay_s(retry, chance) for retry in range(1, count + 1)]


def test_without_a_factor_every_wait_is_the_backoff() -> None:
    assert delays(RetryPolicy(9, 1.5), 3) == [1.5, 1.5, 1.5]


def test_each_wait_is_the_one_before_times_the_factor() -> None:
    assert delays(RetryPolicy(9, 0.5, factor=2), 4) == [0.5, 1.0, 2.0, 4.0]


def test_no_wait_is_longer_than_max_backoff() -> None:
    assert delays(RetryPolicy(9, 1, factor=10, max_backoff=25), 4) == [1, 10, 25, 25]


def test_jitter_adds_up_to_its_share_of_each_wait() -> None:
    policy = RetryPolicy(9, 10, jitter=0.5)
    assert [policy.delay_s(1, chance) for chance in (0.0, 0.5, 1.0)] == [10, 12.5, 15]


@pytest.mark.parametrize(
    "retry",
    [
        1,
        10,
        1100,
    ],
)
def test_without_a_backoff_no_factor_makes_a_wait(retry: int) -> None:
    assert RetryPolicy(10**7, 0.0, factor=10.0).delay_s(retry, 1.0) == 0.0


def test_a_wait_beyond_all_numbers_is_max_backoff() -> None:
    assert RetryPolicy(10**7, 1.0, factor=10.0, max_backoff=60).delay_s(10**6, 0.0) == 60


def attempts_of(policy: RetryPolicy, error: BaseException) -> int:
    def fail(context: TaskContext) -> None:
        raise error

    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, fail)
    task = Task.bash("")
    with pytest.raises(type(error)):
        executor.execute(task, retry_policy=policy)
    return task.attempts


@pytest.mark.parametrize(
    ("retry_on", "error", "attempts"),
    [
        (None, ValueError("x"), 3),
        (ValueError, ValueError("x"), 3),
        (ValueError, UnicodeError("x"), 3),
        (ValueError, KeyError("x"), 1),
        ((KeyError, OSError), OSError("x"), 3),
        ((), ValueError("x"), 1),
        (lambda error: "again" in str(error), ValueError("again"), 3),
        (lambda error: "again" in str(error), ValueError("never"), 1),
    ],
)
def test_only_what_retry_on_allows_is_tried_again(retry_on: Any, error: Exception, attempts: int) -> None:
    assert attempts_of(RetryPolicy(3, retry_on=retry_on), error) == attempts


def test_a_failure_with_a_policy_of_one_attempt_is_not_tried_again() -> None:
    assert attempts_of(RetryPolicy(1), ValueError("x")) == 1


class _Handler:
    def __call__(self, context: object) -> None:
        """Do nothing."""


def _handler(context: object, option: int = 0) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (_handler, "_handler"),
        (partial(_handler, option=1), "_handler"),
        (partial(partial(_handler), option=1), "_handler"),
        (_Handler(), "_Handler"),
        (partial(_Handler()), "_Handler"),
        (_Handler().__call__, "_Handler.__call__"),
    ],
)
def test_code_is_named_by_what_it_calls_in_the_end(thing: object, name: str) -> None:
    assert qualified_name(thing) == f"{__name__}.{name}"
