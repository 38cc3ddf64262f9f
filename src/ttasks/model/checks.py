"""What arguments have to be; each check raises TypeError or ValueError with the words of the contract."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from ttasks.events.status import OnInterrupted

FLOAT_MAX: Final = sys.float_info.max
_ANSWERS: Final[dict[str, OnInterrupted]] = {answer.value: answer for answer in OnInterrupted}


def check_str(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")


def check_bool(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_timeout(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout must be a number or None, got {type(value).__name__}")
    if not 0 < value <= FLOAT_MAX:
        raise ValueError(f"timeout must be greater than 0 and finite, in seconds, or None for no limit; got {value!r}")


def check_path(value: object, name: str) -> str | None:
    """Return a path as text; None stays None. TypeError: it is neither text nor a path of text."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if path is not None and not isinstance(path, str):
        raise TypeError(f"{name} must be a str or a path, got {type(value).__name__}")
    return path


def check_on_interrupted(value: object) -> OnInterrupted:
    answer = _ANSWERS.get(value) if isinstance(value, str) else None
    if answer is not None:
        return answer
    allowed = ", ".join(map(repr, _ANSWERS))
    if not isinstance(value, str):
        raise TypeError(f"on_interrupted must be one of {allowed}, got {type(value).__name__}")
    raise ValueError(f"on_interrupted must be one of {allowed}, got {value!r}")


def check_error(value: object) -> None:
    if value is not None:
        check_str(value, "error")


def check_env(env: object) -> dict[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of str to str, got {type(env).__name__}")
    for name, value in env.items():
        check_str(name, "an env name")
        check_str(value, f"env[{name!r}]")
        if name == "" or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(f"env[{name!r}] can't be set: no name may be empty or hold '=', nothing may hold NUL")
    return dict(env) or None


def check_number(value: Any, name: str, *, least: float = 0.0) -> None:
    """Refuse what is no finite number of at least `least`.

    Raises:
        TypeError: it is no number (a bool is none).
        ValueError: it is NaN, infinite or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value <= FLOAT_MAX:  # NaN is in no order, and an int may be beyond all floats
        kind = "non-negative number" if least == 0.0 else f"number of at least {least:g}"
        raise ValueError(f"{name} must be a finite {kind}, got {value!r}")
