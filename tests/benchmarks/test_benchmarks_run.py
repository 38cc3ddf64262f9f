"""The benchmark is run in tiny sizes, so that it works when somebody wants to know; what it says is not judged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("bench_main_job.py")
NAMES = (
    "tasks in a row",
    "tasks on 8 threads",
    "a chain of tasks",
    "a random graph",
    "2 x true",
    "1,000 lines",
    "0.5 MB of output",
    "20 tasks loaded",
    "20 in a graph loaded",
    "import ttasks",
    "its names imported",
    "a process, a bash task",
    "20 tasks go on",
    "ttasks resume goes on",
)
RATIO = re.compile(r" *\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\) +x \S.*")
AIM = re.compile(r"aim (none|(<=|<|>=) [\d.]+( \S.*)?: (ok|over))")


def test_the_benchmark_prints_every_line_with_its_ratio_its_reference_and_its_aim() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert tuple(name.strip() for name, *_ in lines) == NAMES
    for _, ratio, figure, aim in lines:
        assert RATIO.fullmatch(ratio)
        assert figure.strip()
        assert AIM.fullmatch(aim)
