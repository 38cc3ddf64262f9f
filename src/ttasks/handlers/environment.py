"""What a script is given of its caller's world: the same in every caller's shell, and in every locale."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

NOT_INHERITED: Final = (
    b"BASH_ENV", b"ENV", b"SHELLOPTS", b"BASHOPTS", b"BASH_COMPAT", b"POSIXLY_CORRECT", b"CDPATH", b"GLOBIGNORE",
    b"EXECIGNORE", b"TMOUT",
)  # fmt: skip
"""The variables by which a caller's shell would change what a script does; a task's own `env` may set them."""
_FUNCTION: Final = b"BASH_FUNC_"
"""How the names of the variables begin in which bash exports functions."""


def encoded(text: str, what: str) -> bytes:
    """Return a text as UTF-8, whatever the locale; a byte that is not UTF-8, as Python has it in texts, is itself.

    Raises:
        ValueError: `what` holds a lone surrogate, which no bytes stand for.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} can't be written as UTF-8: its character {error.start + 1} is a lone surrogate"
            f" ({text[error.start]!r}); nothing was run"
        ) from None


def script_environment(own: Mapping[str, str], marks: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the whole environment of a script: the caller's, on top of it the task's own, and what marks the attempt.

    Raises:
        ValueError: a variable can't be written as UTF-8.
    """
    # As bytes, because decoding and encoding a hundred variables takes longer than everything else here.
    # One by one, because other threads may remove variables meanwhile.
    environment = {
        name: inherited
        for name in list(os.environb)
        if name not in NOT_INHERITED
        and not name.startswith(_FUNCTION)
        and (inherited := os.environb.get(name)) is not None
    }
    # Else Python keeps what it prints to itself until it ends, and one that is ended by force loses it.
    environment.setdefault(b"PYTHONUNBUFFERED", b"1")
    for name, value in (*own.items(), *marks.items()):
        environment[encoded(name, "the name of a variable")] = encoded(value, f"the variable {name}")
    return environment
