"""The types that users see, checked as users check them: outside of the source tree, against the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def check(name: str, folder: Path) -> list[tuple[int, str]]:
    """Return the line and the code of everything that mypy --strict says of a copy of a sample."""
    copy = Path(shutil.copy(HERE / name, folder))
    options = ["--strict", "--no-color-output", "--hide-error-context", "--config-file=", "--cache-dir", "cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, copy.name], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said = re.findall(r"^(.+?):(\d+): error: .*?\[([\w-]+)\]$", done.stdout, flags=re.MULTILINE)
    assert {file for file, _, _ in said} <= {copy.name}, done.stdout
    assert len(said) == done.stdout.count(": error: "), done.stdout
    return sorted((int(line), code) for _, line, code in said)


@pytest.mark.timeout(240)
def test_what_users_write_has_the_types_that_are_promised(tmp_path: Path) -> None:
    assert check("sample.py", tmp_path) == []


@pytest.mark.timeout(240)
def test_each_mistake_is_found_and_nothing_else(tmp_path: Path) -> None:
    expected = [
        (number, code)
        for number, line in enumerate((HERE / "mistakes.py").read_text("utf-8").splitlines(), 1)
        for code in (line.partition("# E: ")[2].split(", ") if "# E: " in line else ())
    ]
    assert check("mistakes.py", tmp_path) == sorted(expected)
    assert len(expected) > 25
