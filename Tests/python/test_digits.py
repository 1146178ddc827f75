"""The digits programs of examples/: each learns handwritten digits, and micro-batches make the curve of whole batches, or a
loss scale finds where float16 holds the gradients."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support import ROOT, environment
from tally import SPLIT_INVARIANCE, TRUE_WEIGHTS

RESULT = re.compile(
    r"RESULT accuracy=([0-9.]+) largest_difference=(\S+) tolerance=(\S+) same_bits=(yes|no) weights_sha256=([0-9a-f]{64})"
)
SCALED_RESULT = re.compile(
    r"RESULT accuracy=([0-9.]+) updates=(\d+) skipped=(\d+) first_scale=(\d+) final_scale=(\d+)"
)


def last_line(name: str, result: re.Pattern[str], *options: str, **variables: str) -> tuple[str, ...]:
    """Runs a program and returns the fields of its last line."""
    program = [sys.executable, str(ROOT / "examples" / "python" / name), *options]
    done = subprocess.run(program, env=environment(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    match = result.fullmatch(done.stdout.rstrip("\n").rpartition("\n")[2])
    assert match, done.stdout
    return match.groups()


def run(name: str, *options: str, **variables: str) -> tuple[float, float, float, bool, str]:
    """Runs a program that trains twice."""
    accuracy, difference, tolerance, same_bits, digest = last_line(name, RESULT, *options, **variables)
    return float(accuracy), float(difference), float(tolerance), same_bits == "yes", digest


@pytest.fixture(autouse=True)
def _digits():
    pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")


@pytest.mark.law(SPLIT_INVARIANCE)
def test_operations_of_the_library_give_the_same_bits():
    results = [
        run("digits_ops.py", "--micro-batches", str(count), GRADACCUM_NUM_THREADS=str(threads))
        for count, threads in ((8, 1), (5, 2))
    ]
    assert len({digest for *_, digest in results}) == 1
    for accuracy, difference, tolerance, same_bits, _ in results:
        assert accuracy >= 0.97 and same_bits and difference <= tolerance <= 1e-12


@pytest.mark.law(TRUE_WEIGHTS)
def test_gradients_by_hand_in_numpy_give_the_same_curve():
    accuracy, difference, tolerance, _, _ = run("digits_numpy.py")
    assert accuracy >= 0.97 and difference <= tolerance < 2e-3


@pytest.mark.law(TRUE_WEIGHTS)
def test_convolutions_of_pytorch_give_the_same_curve():
    pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
    accuracy, difference, tolerance, _, _ = run("digits_torch.py")
    assert accuracy >= 0.97 and difference <= tolerance < 2e-3


def test_float16_gradients_skip_windows_until_the_scale_fits():
    accuracy, *counts = last_line("digits_float16.py", SCALED_RESULT)
    updates, skipped, first_scale, final_scale = map(int, counts)
    windows = 20 * 15  # epochs, and batches in each
    assert float(accuracy) >= 0.97 and updates + skipped == windows
    assert skipped >= 1 and final_scale < first_scale


def test_wrong_weights_would_show():
    """The tolerance is no excuse: a mean of means, which counts small micro-batches like large ones, exceeds it."""
    program = (
        "import digits, digits_numpy as program, gradaccum as ga\n"
        "right = ga.Accumulator.accumulate_gradients\n"
        "def wrong(self, gradients, loss, weight):\n"
        "    right(self, [x * (12 / weight) for x in gradients], loss, 12)\n"
        "whole = program.train(1)\n"
        "ga.Accumulator.accumulate_gradients = wrong\n"
        "tolerance = digits.rounding(digits.steps(digits.load()[0], program.EPOCHS))\n"
        "assert digits.largest_difference(whole, program.train(8)) > 5 * tolerance\n"
    )
    folder = str(ROOT / "examples" / "python")
    variables = environment()
    variables["PYTHONPATH"] = folder + ":" + variables["PYTHONPATH"]
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
