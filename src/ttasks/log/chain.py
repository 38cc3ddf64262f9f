"""The hash chain: each event's hash covers the hash before it and every column of its envelope."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

GENESIS: Final = bytes(32)
_WHAT_IS_HASHED: Final = b"ttasks event 1\n"


def event_hash(before: bytes, columns: tuple[int | str | None, ...]) -> bytes:
    """Return the SHA-256 of one event.

    Args:
        before: the hash of the event before it, `GENESIS` for the first.
        columns: position, stream, version, type, type_version, recorded_at, runner, cause, data, as stored.

    Hashed are the bytes ``ttasks event 1\\n``, `before`, and each column as a netstring (``<bytes>:<content>,`` of its
    decimal or UTF-8 text; NULL is ``-``): no two different events give the same bytes.
    """
    # In one go where that counts the same: only of ASCII there are as many bytes as characters.
    text = "".join(["-" if column is None else f"{len(t := str(column))}:{t}," for column in columns])
    netstrings = text.encode() if text.isascii() else b"".join(map(_netstring, columns))
    hashed = sha256(_WHAT_IS_HASHED + before)
    hashed.update(netstrings)  # not joined with the rest: they may be long
    return hashed.digest()


def _netstring(column: int | str | None) -> bytes:
    if column is None:
        return b"-"
    content = str(column).encode()
    return b"%d:%b," % (len(content), content)
