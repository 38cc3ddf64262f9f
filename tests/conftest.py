"""What tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A slow moment of a shared machine is no failure.
settings.register_profile("ttasks", deadline=None)
settings.load_profile("ttasks")


@pytest.fixture
def outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of this test that is in no git checkout: no RunnerDescribed follows in a moment of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
