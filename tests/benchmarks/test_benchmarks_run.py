"""The benchmarks are run in tiny sizes, so that they work when somebody wants to know; what they say is not judged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("bench_main_job.py")
PAGES_SCRIPT = Path(__file__).with_name("bench_browse.py")
NAMES = (
    "tasks in a row",
    "tasks on 8 threads",
    "a chain of tasks",
    "a random graph",
    "2 x true",
    "1,000 lines",
    "0.5 MB of output",
    "0.5 MB and a secret",
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


def test_the_benchmark_of_the_pages_prints_each_alone_and_beside_a_writer() -> None:
    done = subprocess.run(
        [sys.executable, str(PAGES_SCRIPT), "--quick", "--writer"], capture_output=True, text=True, timeout=250
    )
    assert (done.returncode, done.stderr) == (0, "")
    made, *table, asked = done.stdout.splitlines()
    assert re.fullmatch(r"1,\d{3} events, 300 tasks, 1 MB, made in [\d.]+ s", made)
    assert re.fullmatch(r"\d+ pages were asked for meanwhile", asked)
    lines = {name.strip(): rest for name, *rest in (line.split(" | ") for line in table)}
    assert {"home", "home, what changes", "table of events", "a writer while pages are", "… home"} <= set(lines)
    for name, rest in lines.items():
        if rest != ["not there"]:
            ratio, figure, aim = rest
            assert RATIO.fullmatch(ratio), name
            assert figure.strip() and AIM.fullmatch(aim), name
