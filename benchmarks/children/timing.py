"""What every child does the same: reading its settings, timing, peak memory, and its answer."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

MEBIBYTE = 2**20
# What the rows call the types that ours computes in.
COMPUTE_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def settings() -> dict[str, Any]:
    return dict(json.loads(sys.argv[1]))


def answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def peak_rss_mib() -> float:
    """Of this program alone: ru_maxrss would include what its parent had when it started it."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MEBIBYTE
    raise RuntimeError("/proc/self/status has no VmHWM")


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def peak_gflops(command: list[str]) -> float:
    """The multiply-add peak that the machine has right now, which other users of it change."""
    return float(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)["gflops"])


def timed_updates(
    update: Callable[[Any], Result], batches: Iterator[Any], wanted: dict[str, Any]
) -> tuple[dict[str, list[Any]], list[Result]]:
    """The seconds and page faults of each update, with the peak before the first and after each; and what the
    updates returned."""
    seconds: list[float] = []
    faults: list[int] = []
    results: list[Result] = []
    peaks = [peak_gflops(wanted["peak"])]
    for _ in range(wanted["updates"]):
        batch = next(batches)
        faults_before = page_faults()
        elapsed, result = timed(lambda: update(batch))
        faults.append(page_faults() - faults_before)
        seconds.append(elapsed)
        results.append(result)
        peaks.append(peak_gflops(wanted["peak"]))
    return {"seconds": seconds, "page_faults": faults, "peaks": peaks}, results
