"""What makes a name public: it says that it belongs to `ttasks`, the only place to import it from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def public(*things: type | Callable[..., Any]) -> None:
    """Let these say that they are of `ttasks`; the module that defines them calls this, when all of it is defined.

    The annotations of a class are texts, looked up in the module that it says it is of. Its own is the one that knows
    the names in them, so they are resolved while it still says so, and `typing.get_type_hints` finds types.
    """
    for thing in things:
        if isinstance(thing, type):
            thing.__annotations__ = inspect.get_annotations(thing, eval_str=True)
        thing.__module__ = "ttasks"
