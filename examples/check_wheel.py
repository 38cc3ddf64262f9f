"""Check that a wheel has what no import would miss at once: the migrations, and the mark that says it is typed."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing(wheel: Path) -> list[str]:
    """Return the files that should be in the wheel and are not."""
    needed = ["ttasks/py.typed", *(f"ttasks/migrations/{file.name}" for file in (ROOT / "migrations").glob("*.sql"))]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    return [name for name in needed if name not in names]


if __name__ == "__main__":
    (wheel,) = map(Path, sys.argv[1:])
    lacking = missing(wheel)
    if lacking:
        sys.exit(f"{wheel.name} lacks {', '.join(lacking)}")
    print(f"{wheel.name} has the migrations and py.typed")
