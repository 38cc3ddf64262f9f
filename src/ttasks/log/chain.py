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
    # Columns are ASCII but for texts in the data: the bytes are counted where they aren't as many as the characters.
    text = "".join(
        [
            "-" if column is None else f"{len(text) if text.isascii() else len(text.encode())}:{text},"
            for column, text in [(column, str(column)) for column in columns]
        ]
    )
    return sha256(b"".join((_WHAT_IS_HASHED, before, text.encode()))).digest()
