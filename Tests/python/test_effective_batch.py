"""Large effective batches from small micro-batches, on the GPT of examples/c/train_gpt.c at its own size with a short
context: one hash of the weights per batch."""

from __future__ import annotations

import re
import subprocess

import pytest

from support import ROOT, environment
from tally import FACTOR, SPLIT_INVARIANCE, case

PROGRAM = ROOT / "build" / "examples" / "train_gpt"
TEXT = ROOT / "Tests" / "parity" / "genesis.txt"
UPDATES = {256: 2 * FACTOR, 1024: FACTOR}
LARGEST_MICRO_BATCH = 16


def hash_of_the_weights(batch: int, micro_batch: int, threads: int) -> str:
    options = {
        "text": TEXT,
        "context": 8,
        "batch": batch,
        "micro-batch": micro_batch,
        "threads": threads,
        "updates": UPDATES[batch],
        "warmup": 0,
        "eval-every": UPDATES[batch],
        "sample": 0,
    }
    command = [str(PROGRAM), *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = re.search(rf"RESULT updates={UPDATES[batch]} .* weights_sha256=([0-9a-f]{{64}})", done.stdout)
    assert found, done.stdout
    return found.group(1)


@pytest.fixture(scope="module")
def of_the_whole_batch() -> dict[int, str]:
    """Computed in one piece."""
    return {batch: hash_of_the_weights(batch, batch, 2) for batch in UPDATES}


@pytest.mark.law(SPLIT_INVARIANCE)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", UPDATES)
def test_one_hash_for_every_size_of_micro_batch(of_the_whole_batch, batch, threads):
    """Most sizes do not divide the batch, so that the last micro-batch is smaller."""
    assert len(set(of_the_whole_batch.values())) == len(UPDATES)
    for size in range(1, LARGEST_MICRO_BATCH + 1):
        case()
        assert hash_of_the_weights(batch, size, threads) == of_the_whole_batch[batch], f"micro-batches of {size}"
