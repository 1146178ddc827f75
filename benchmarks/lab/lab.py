"""The run that rows share: its settings, its copy of the library, and what was already measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .child import Build, ChildFailed, run_child, run_program
from .load import TOLERATED, OtherWork, wait_until_quiet
from .native import build_program

Value = TypeVar("Value")


@dataclass
class Lab:
    directory: Path  # for what is built, gone after the run
    build: Build
    threads: int
    quick: bool
    patience: float  # seconds that the run may still wait for other work to end
    other_cpus: float = 0.0  # the most that others have kept busy in the measurements of a row
    _measured: dict[str, Any] = field(default_factory=dict)

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def once(self, key: str, measure: Callable[[], Value]) -> Value:
        """What several rows need is measured for the first of them. A failure is kept, too."""
        if key not in self._measured:
            try:
                self._measured[key] = (measure(), None, self.other_cpus)
            except ChildFailed as error:
                self._measured[key] = (None, error, self.other_cpus)
        value, error, other_cpus = self._measured[key]
        self.other_cpus = max(self.other_cpus, other_cpus)
        if error is not None:
            raise error
        return value

    def progress(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    # ====== Measurements ======

    def child(self, script: str, settings: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
        """The answer of children/<script>.py."""
        return self._undisturbed(lambda: run_child(script, settings, threads or self.threads, self.build))

    def training(self, script: str, settings: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
        """A child that also measures the multiply-add peak around each of its updates."""
        threads = threads or self.threads
        command = [str(self._built("fma_peak")), settings["dtype"], str(threads)]
        return self.child(script, {**settings, "peak": command}, threads)

    def program(self, name: str, arguments: Sequence[object], *, linked: bool = False) -> Any:
        """What native/<name>.c prints."""
        command = [str(self._built(name, linked=linked)), *map(str, arguments)]
        return self._undisturbed(lambda: run_program(command, self.threads, self.build))

    def _built(self, name: str, *, linked: bool = False) -> Path:
        build = self.build if linked else None
        return self.once(f"build {name}", lambda: build_program(name, self.directory, build))

    def _undisturbed(self, run: Callable[[], Value]) -> Value:
        """Waits for a quiet machine and, while there is patience, tries again what others have disturbed."""
        while True:
            self.patience -= wait_until_quiet(self.patience)
            began = time.monotonic()
            other = OtherWork()
            value = run()
            cpus = other.cpus()
            if cpus <= TOLERATED or self.patience <= 0:
                self.other_cpus = max(self.other_cpus, cpus)
                return value
            self.patience -= time.monotonic() - began
