"""The table of the laws: what a test of a law has run, and how often more than usual it is to run.

A test is one of a law's by its marker, @pytest.mark.law(NO_TRACE). Each example of a hypothesis test is a case; a
test that loops counts its cases with case(); any other is one case. Where GRADACCUM_LAW_TALLY names a file, the sums
are added to it, for Tests/laws.py, which prints the table.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import Phase, settings

SPLIT_INVARIANCE = "split invariance"
TRUE_WEIGHTS = "true weights"
SCALING = "scaling is transparent"
NO_TRACE = "a skip leaves no trace"
FLAT_MEMORY = "flat memory"
ONE_CLOCK = "one clock"

# Ten times the cases: GRADACCUM_LAW_FACTOR=10.
FACTOR = int(os.environ.get("GRADACCUM_LAW_FACTOR", "1"))
SHRINK = os.environ.get("GRADACCUM_LAW_SHRINK") == "1"

_cases: Counter[str] = Counter()
_failures: Counter[str] = Counter()
_in_this_test = 0


def examples(count: int) -> Callable[[Any], Any]:
    """The settings of a hypothesis test with this number of examples.

    A failing example is shown as it was found: to make it smaller first takes minutes, for each optimizer again. With
    GRADACCUM_LAW_SHRINK=1 that is done.
    """
    phases = tuple(phase for phase in Phase if phase is not Phase.shrink or SHRINK)
    return settings(max_examples=count * FACTOR, phases=phases)


def case() -> None:
    """Counts a case of the test that runs."""
    global _in_this_test
    _in_this_test += 1


def start_test() -> None:
    global _in_this_test
    _in_this_test = 0


def end_test(laws: list[str], failed: bool) -> None:
    for law in laws:
        _cases[law] += max(1, _in_this_test)
        _failures[law] += failed


def write() -> None:
    """Adds the sums to the file of the environment, if it names one."""
    path = os.environ.get("GRADACCUM_LAW_TALLY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            for law, cases in _cases.items():
                line = {"law": law, "cases": cases, "failures": _failures[law], "of": "python"}
                file.write(json.dumps(line) + "\n")
