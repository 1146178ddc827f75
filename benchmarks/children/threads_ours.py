"""Trains the GPT with gradaccum on one and on two threads in turn, update by update."""

from __future__ import annotations

import gradaccum as ga
from gpt_config import GPTConfig
from gpt_ours import Training
from timing import answer, settings, timed


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    update = Training(config).update
    batches = config.batches()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    update(next(batches))
    for _ in range(wanted["updates"]):
        for threads in seconds:
            ga.set_num_threads(threads)
            batch = next(batches)
            seconds[threads].append(timed(lambda: update(batch))[0])
    answer({"one": seconds[1], "two": seconds[2], "tokens": config.tokens})


if __name__ == "__main__":
    main()
