"""What every child does the same: reading its settings, timing, peak memory, and its answer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

MEBIBYTE = 2**20


def settings() -> dict[str, Any]:
    return dict(json.loads(sys.argv[1]))


def answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def unsupported(reason: str) -> NoReturn:
    answer({"unsupported": reason})
    sys.exit(0)


def peak_rss_mib() -> float:
    """Of this program alone: ru_maxrss would include what its parent had when it started it."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MEBIBYTE
    raise RuntimeError("/proc/self/status has no VmHWM")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
