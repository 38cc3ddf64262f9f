"""Mappings that handles and records show: a change of one would be lost, so it is refused."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class ReadOnlyDict(dict[Key, Value]):
    """A dict that refuses to be changed, and says what to do instead. ``dict(it)`` is a copy that may be."""

    __slots__ = ("_refusal",)

    def __init__(self, content: dict[Key, Value], refusal: str) -> None:
        super().__init__(content)
        self._refusal = refusal

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(self._refusal)

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[Key, Value]]]:
        return dict, (dict(self),)
