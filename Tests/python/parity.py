"""Fixtures of Tests/parity, and how near to them a result must be.

Tolerance. A fixture holds what PyTorch computes in float64, R, and how far its own float32 result was from
it: rms and max, over the elements of a tensor. Our float32 result makes rounding errors of the same kind and
number, in another order, so its error should be of the same size, and not equal. It may be

    rms error      <= FACTOR x rms of PyTorch's error       +     ulp
    largest error  <= FACTOR x the largest of PyTorch's     + 4 x ulp

where ulp = 2^-23 x max|R| is one unit in the last place of the tensor's largest element: PyTorch's error can
be 0 by luck where few operations are done, and 1 ulp is what a single rounding of another order may change.
FACTOR is 4: our sums are one chain in sample order, whose error grows with the square root of its length n,
while PyTorch's vectorised sums of the same n keep 8 or 16 partial chains, so that the ratio to be expected is
at most 4. A wrong formula, a missing term or a lower precision is off by orders of magnitude more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

FACTOR = 4.0


class Fixtures:
    """The arrays of a file by their names."""

    def __init__(self, file: str) -> None:
        self._arrays = np.load(Path(__file__).resolve().parents[1] / "parity" / file)
        assert str(self["magic"]) == "gradaccum parity" and int(self["format"]) == 1

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def names(self, prefix: str) -> list[str]:
        """What comes after a prefix, without the error bounds."""
        files = self._arrays.files
        return [name.removeprefix(prefix) for name in files if name.startswith(prefix) and ":" not in name]

    def check(self, name: str, ours: np.ndarray) -> None:
        reference = self[name]
        ours = np.asarray(ours)
        assert ours.shape == reference.shape, name
        error = np.abs(ours.astype(np.float64) - reference)
        ulp = 2.0**-23 * np.abs(reference).max(initial=0.0)
        rms_bound = FACTOR * self[f"{name}:rms"] + ulp
        max_bound = FACTOR * self[f"{name}:max"] + 4 * ulp
        rms = np.sqrt(np.mean(error**2))
        assert rms <= rms_bound, f"{name}: rms error {rms:.3g}, allowed {rms_bound:.3g}"
        assert error.max() <= max_bound, f"{name}: largest error {error.max():.3g}, allowed {max_bound:.3g}"

    def check_bounds(self) -> None:
        """A relative error of 2e-4, less than bfloat16 or a wrong eps would make, is outside of every bound."""
        for name in self.names(""):
            if f"{name}:max" in self._arrays.files and np.abs(self[name]).max() > 0:
                with pytest.raises(AssertionError):
                    self.check(name, self[name] * (1 + 2e-4))
