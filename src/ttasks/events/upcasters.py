"""Lifting old payloads: one function per (type, version), from that version to the next.

Stored events are never rewritten; they are lifted each time they are read. All types are at version 1 so far;
`tests/integration/test_type_versions.py` shows by example how one gets another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTERS: Final[Mapping[tuple[str, int], Upcaster]] = {}
