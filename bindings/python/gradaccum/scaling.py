"""How updates follow the weight of their window, where that is not the weight that hyperparameters were chosen for."""

from __future__ import annotations

from dataclasses import dataclass

from . import _ffi
from ._arguments import constant_of, flag

_RULES = {"none": _ffi.SCALING_NONE, "linear": _ffi.SCALING_LINEAR, "sqrt": _ffi.SCALING_SQRT}


@dataclass(frozen=True)
class BatchScaling:
    """`optimizer.scaling = ga.BatchScaling("sqrt", base_weight=256)`.

    rule: the learning rate of an update is multiplied by x = weight / base_weight if "linear", as fits SGD (arXiv
        1706.02677), by its root if "sqrt", as fits Adam (arXiv 2205.10287), and stays as it is if "none".
    base_weight: the samples or tokens of the window that hyperparameters were chosen for.
    beta2_half_life: beta2 becomes beta2 ** x in the update, so that second moments have a half-life in samples or
        tokens (arXiv 2507.07101). For Adam, AdamW, NAdam, LAMB, AdamW8bit and, in its AdamW, Muon.
    """

    rule: str
    base_weight: float
    beta2_half_life: bool = False

    def options(self) -> _ffi.ScalingOptions:
        """The ga_scaling_options of the C library."""
        return _ffi.ScalingOptions(
            rule=constant_of("rule", self.rule, _RULES),
            base_weight=self.base_weight,
            beta2_half_life=flag("beta2_half_life", self.beta2_half_life),
        )
