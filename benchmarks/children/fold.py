"""Windows of ours and of PyTorch in turns, of the same gradients: prints, per side, the seconds of each micro-batch of a
window, the first one first, and those of its end.

In one program, because what its memory is made of changes from one program to the next, and with it the time of a pass.
"""

from __future__ import annotations

import math
import os
import time

import torch

from fold_data import GRADIENT_DTYPES, norm_of, tensors
from fold_ours import Ours
from fold_pytorch import PyTorch
from gpt_config import GPTConfig
from timing import answer, settings

PAUSE = 0.05  # seconds: threads of the side before have then stopped waiting for more work
WARM_UP = 2  # windows


def main() -> None:
    wanted = settings()
    config, micro_batches = GPTConfig(**wanted["config"]), wanted["micro_batches"]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = GRADIENT_DTYPES[wanted["dtype"]]
    gradients = [x.to(dtype) for x in tensors(config, seed=3)]
    sides = {"ours": Ours(config, gradients, micro_batches), "peer": PyTorch(config, gradients, micro_batches)}
    answers = {name: {"folds": [], "ends": [], "norm": 0.0} for name in sides}
    for window in range(WARM_UP + wanted["windows"]):
        for name, side in sides.items():
            time.sleep(PAUSE)
            folds = [side.fold() for _ in range(micro_batches)]
            seconds, norm = side.end()
            if window == 0:
                answers[name]["norm"] = norm
            if window >= WARM_UP:
                answers[name]["folds"].append(folds)
                answers[name]["ends"].append(seconds)
    assert math.isclose(answers["ours"]["norm"], norm_of(gradients), rel_tol=1e-4)
    answer(answers)


if __name__ == "__main__":
    main()
