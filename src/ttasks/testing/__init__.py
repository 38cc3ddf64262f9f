"""For the tests of those who use ttasks: what becomes of a graph whose runner dies, at any moment.

`CrashLab` runs a graph of yours in a process of its own, which is killed (SIGKILL) right before or right after one of
its appends to the ledger, and lets you go on from there. ``ttasks.testing.fixtures`` has it as a fixture for pytest.
"""

from __future__ import annotations

from ttasks.testing.crash import Crash, CrashLab, Moment

__all__ = ["Crash", "CrashLab", "Moment"]
