"""What tests of real processes share."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psutil

from ttasks.log.survivors import MARK

PATIENCE_S = 60
"""How long something may take that takes no time: this machine may have much else to do."""


def alive(group: int) -> list[psutil.Process]:
    """Return the processes of a group that have not ended; zombies have."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def processes_of(ledger: str) -> list[psutil.Process]:
    """Return what runs of any attempt of the ledger with this id."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        name = (process.info["environ"] or {}).get(MARK, "")
        if name.startswith(f"{ledger}:") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def until(condition: Callable[[], Any]) -> Any:
    """Look until `condition` holds, and return what it gives; fail where it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        threading.Event().wait(0.005)
    return value


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a thread of its own that can't keep the tests from ending."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future
