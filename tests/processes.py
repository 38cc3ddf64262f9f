"""What tests ask of processes."""

from __future__ import annotations

import contextlib
import os

import psutil


def alive(group: int) -> list[int]:
    """Return the members of a process group that have not ended; those that only wait for init have."""
    members = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members
