"""The run that rows share: its settings, its copy of the library, and what was already measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from .child import run_child, run_program
from .native import build_program

Value = TypeVar("Value")


@dataclass
class Lab:
    directory: Path  # for what is built and copied, gone after the run
    library: Path  # a copy, so that a build in the meantime does not mix two libraries in one table
    threads: int
    quick: bool
    _measured: dict[str, Any] = field(default_factory=dict)
    _peaks: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def once(self, key: str, measure: Callable[[], Value]) -> Value:
        """What several rows need is measured for the first of them. A failure is kept, too."""
        if key not in self._measured:
            try:
                self._measured[key] = (measure(), None)
            except Exception as error:
                self._measured[key] = (None, error)
        value, error = self._measured[key]
        if error is not None:
            raise error
        return value

    def progress(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    # ====== Measurements ======

    def child(self, script: str, settings: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
        return run_child(script, settings, threads or self.threads, self.library)

    def program(self, name: str, arguments: Sequence[object], *, linked: bool = False) -> Any:
        library = self.library if linked else None
        path = self.once(f"build {name}", lambda: build_program(name, self.directory, library))
        return run_program([str(path), *map(str, arguments)], self.threads, self.library)

    def sample_peak(self, dtype: str, threads: int | None = None) -> None:
        """Measures the multiply-add peak now. Each round does, as the machine's speed drifts."""
        threads = threads or self.threads
        measured = self.program("fma_peak", [dtype, threads])
        self._peaks.setdefault((dtype, threads), []).append(measured["gflops"])

    def peak(self, dtype: str, threads: int | None = None) -> float:
        """The median of the peaks measured in this run, in GFLOP/s."""
        return median(self._peaks[dtype, threads or self.threads])
