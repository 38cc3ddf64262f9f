"""What tests of several rooms share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from browsed import Browsed, make_browsed_ledger
from ttasks.log.secret_names import is_secret

pytest_plugins = ["ttasks.testing.fixtures", "doubles.real", "copilots"]

# Where this runs in the background of a script, Ctrl-C is ignored, also by every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Secrets of whoever runs the tests would be masked in what they compare.
for name in [*filter(is_secret, os.environ), "TTASKS_REDACT"]:
    os.environ.pop(name, None)

# A slow moment of a shared machine is no failure. Whether a commit passes is no matter of luck either: inputs are drawn
# anew only in campaigns at full size.
settings.register_profile("ttasks", deadline=None, derandomize=os.environ.get("TTASKS_CAMPAIGN") != "full")
settings.load_profile("ttasks")


@pytest.fixture
def outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of this test that is in no git checkout: no RunnerDescribed follows in a moment of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> Browsed:
    """Return a ledger of real runs to look at. It is shared: whoever changes it takes a copy."""
    return make_browsed_ledger(tmp_path_factory.mktemp("browsed") / "ledger.db")
