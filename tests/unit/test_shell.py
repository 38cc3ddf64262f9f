"""How a script that is longer than an argument may be reaches PowerShell."""

from __future__ import annotations

import os
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttasks.handlers import shell


def arguments(script: str, most: int = shell.ARGUMENT_BYTES_MAX) -> list[str]:
    with patch.object(shell, "ARGUMENT_BYTES_MAX", most), shell._for_powershell(script) as (given, descriptors):
        assert descriptors == []
        assert given[:2] == ["-NoProfile", "-Command"]
        return given[2:]


@given(st.lists(st.text(st.sampled_from("ab\n✓'\"$"), max_size=4)), st.integers(16, 40))
def test_a_script_that_was_cut_at_blanks_is_itself_again_when_joined_with_blanks(words: list[str], most: int) -> None:
    script = " ".join(words)
    parts = arguments(script, most)
    assert " ".join(parts) == (" -" if script == "-" else script)
    assert all(len(os.fsencode(part)) <= most for part in parts)
    assert parts[0] != "-"


def test_a_script_that_fits_is_one_argument() -> None:
    script = "a b " * (shell.ARGUMENT_BYTES_MAX // 4)
    assert arguments(script) == [script]
    assert len(arguments(script + "c")) == 2


def test_a_script_without_a_blank_to_cut_at_is_refused() -> None:
    with pytest.raises(ValueError, match="100000 bytes in a row without a blank"):
        arguments("a b" + "x" * shell.ARGUMENT_BYTES_MAX)
