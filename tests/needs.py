"""What tests need that a stranger may lack."""

from __future__ import annotations

import os

import pytest


def demand(missing: str | None) -> None:
    """Skip a test that something is missing for, or let it fail where CI is set and everything has to be there."""
    if missing is not None and os.environ.get("CI") == "true":
        pytest.fail(missing)
    elif missing is not None:
        pytest.skip(missing)
