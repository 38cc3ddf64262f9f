"""Fixtures for pytest: name this module in ``pytest_plugins``, or import from it what you need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ttasks.testing.crash import Build, CrashLab


@pytest.fixture
def crash_lab(tmp_path: Path) -> Callable[..., CrashLab]:
    """Return what makes a `CrashLab` of a function that builds a graph; its ledgers are in the test's own folder."""

    def make(build: Build, *, max_workers: int = 1) -> CrashLab:
        return CrashLab(tmp_path / "crash-lab", build, max_workers=max_workers)

    return make
