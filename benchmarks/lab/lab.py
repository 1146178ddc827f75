"""The run that rows share: its settings, its copy of the library, and what was already measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .child import Build, run_child, run_program
from .native import build_program

Value = TypeVar("Value")


@dataclass
class Lab:
    directory: Path  # for what is built, gone after the run
    build: Build
    threads: int
    quick: bool
    _measured: dict[str, Any] = field(default_factory=dict)

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
        return run_child(script, settings, threads or self.threads, self.build)

    def training(self, script: str, settings: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
        """A child that also measures the multiply-add peak around each of its updates."""
        threads = threads or self.threads
        command = [str(self.built("fma_peak")), settings["dtype"], str(threads)]
        return self.child(script, {**settings, "peak": command}, threads)

    def built(self, name: str, *, linked: bool = False) -> Path:
        build = self.build if linked else None
        return self.once(f"build {name}", lambda: build_program(name, self.directory, build))

    def program(self, name: str, arguments: Sequence[object], *, linked: bool = False) -> Any:
        command = [str(self.built(name, linked=linked)), *map(str, arguments)]
        return run_program(command, self.threads, self.build)
