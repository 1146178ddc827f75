#!/usr/bin/env python3
"""Runs the tests of the laws and prints what they did: law, cases, failures.

    laws.py run LIBRARY PYTHON [FACTOR]     the Swift and the Python tests of the laws, with FACTOR times the cases
    laws.py table FILE                      the table of a run of all tests that wrote its tally to FILE

The exit status is 0 only if every law was tested from both languages without a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAWS = ("split invariance", "true weights", "scaling is transparent", "a skip leaves no trace", "flat memory", "one clock")
SWIFT_TESTS = "LawTests|SplitInvarianceTests"


def table(tally: Path) -> bool:
    """Prints the table, and returns whether it has no failure and nothing is missing."""
    lines = [json.loads(line) for line in tally.read_text(encoding="utf-8").splitlines()]
    print(f"\n{'law':<24}{'cases':>8}{'failures':>10}")
    good = True
    for law in LAWS:
        own = [line for line in lines if line["law"] == law]
        cases = sum(line["cases"] for line in own)
        failures = sum(line["failures"] for line in own)
        missing = {"swift", "python"} - {line["of"] for line in own}
        print(f"{law:<24}{cases:>8}{failures:>10}" + "".join(f"  no test from {language}" for language in sorted(missing)))
        good = good and failures == 0 and not missing
    unknown = {line["law"] for line in lines} - set(LAWS)
    assert not unknown, f"laws that the table does not have: {unknown}"
    return good


def run(library: str, python: str, factor: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder) / "tally"
        tally.touch()
        variables = {
            **os.environ,
            "GRADACCUM_LIBRARY": library,
            "GRADACCUM_LAW_TALLY": str(tally),
            "GRADACCUM_LAW_FACTOR": factor,
        }
        swift = [*os.environ.get("SWIFT_TEST", "swift test -c release --disable-testable-imports").split(), "--filter", SWIFT_TESTS]
        pytest = [python, "-m", "pytest", "Tests/python", "-q", "-m", "law"]
        # Most of either runs on one core: they go side by side, and what the first prints follows the second.
        with tempfile.TemporaryFile() as printed:
            background = subprocess.Popen(swift, cwd=ROOT, env=variables, stdout=printed, stderr=subprocess.STDOUT)
            try:
                statuses = [subprocess.run(pytest, cwd=ROOT, env=variables).returncode, background.wait()]
            finally:
                background.kill()
                printed.seek(0)
                sys.stdout.write(printed.read().decode("utf-8", "replace"))
        return table(tally) and not any(statuses)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["table"] and len(arguments) == 2:
        return 0 if table(Path(arguments[1])) else 1
    if arguments[:1] == ["run"] and len(arguments) in (3, 4):
        return 0 if run(*arguments[1:3], *(arguments[3:] or ["1"])) else 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
