#!/usr/bin/env python3
"""Trains a byte-level GPT on a text file, with numpy and the ctypes binding of gradaccum.

The model is GPT-2's: pre-norm blocks, learned positions, and a head that shares the token embedding. A
batch is computed in micro-batches of any size; the weights come out the same to the last bit, as does every
number of examples/c/train_gpt.c, which is the same program.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from pathlib import Path

from console import PROGRAM, Failure, Progress, handle_signals, stop_if_interrupted

# Before the imports that take a moment, so that Ctrl-C never ends in a traceback.
handle_signals()
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
try:
    import numpy as np

    import gradaccum as ga
    from gpt import GPT, VOCABULARY
    from options import COMPUTE_DTYPES, SUM_FORMATS, parse_options
    from text import Random, read_text
except ImportError as error:
    sys.exit(f"{PROGRAM}: {error}")

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1
VALIDATION_WINDOWS = 32
TEMPERATURE = 0.6


class Windows:
    """Room for the windows of one micro-batch, as the int32 that an embedding looks up."""

    def __init__(self, most, context):
        self.context = context
        self.bytes = np.empty((most, context + 1), np.int32)

    def tensors(self, text, starts):
        """Tensors [windows, context] of the bytes from each start on, and of the byte after each of them."""
        rows = 0
        for start in starts:
            self.bytes[rows] = text[start : start + self.context + 1]
            rows += 1
        return ga.tensor(self.bytes[:rows, :-1]), ga.tensor(self.bytes[:rows, 1:])


def learning_rate_of(options, update):
    """Linear warmup, then a cosine from the highest learning rate to a tenth of it."""
    if update < options.warmup:
        return options.learning_rate * ((update + 1) / options.warmup)
    done = (update - options.warmup) / (options.updates - options.warmup)
    return options.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def train_update(gpt, accumulator, options, text, windows, random):
    """One update: the batch in micro-batches, the last of them with what is left."""
    for done in range(0, options.batch, options.micro_batch):
        rows = min(options.micro_batch, options.batch - done)
        starts = (random.next() % (len(text) - options.context) for _ in range(rows))
        loss = gpt.loss(*windows.tensors(text, starts))
        accumulator.accumulate(loss, weight=rows * options.context)
        stop_if_interrupted()
    report = accumulator.step()
    if report.skipped and report.outcome != ga.Outcome.SKIPPED_OVERFLOW:
        raise Failure("a gradient is no finite number any more: choose a lower --learning-rate.")
    return report


def validation_loss(gpt, text, windows):
    """The mean loss of windows spread evenly over the text. They are computed one at a time, so that the sum,
    and with it the last digit, does not depend on --micro-batch."""
    last_start = len(text) - windows.context - 1
    total = 0.0
    with ga.no_grad():
        for i in range(VALIDATION_WINDOWS):
            start = last_start * i // (VALIDATION_WINDOWS - 1)
            total += gpt.loss(*windows.tensors(text, [start])).item()
            stop_if_interrupted()
    return total / (VALIDATION_WINDOWS * windows.context)


def train(gpt, options, train_text, validation_text, progress):
    """Returns the report of the last update."""
    optimizer = ga.AdamW(gpt.parameters, lr=options.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    # The scale keeps gradients of float16 in its range. It is halved by an overflow, whose window is skipped; a second skip
    # in a row is an error where it cannot go lower.
    scaler = ga.LossScaler() if options.compute == "f16" else None
    accumulator = ga.Accumulator(
        optimizer,
        max_grad_norm=options.clip,
        max_consecutive_skips=1,
        loss_scaler=scaler,
        sum_format=SUM_FORMATS[options.sums],
    )
    windows = Windows(options.micro_batch, options.context)
    random = Random(options.seed, Random.BATCHES)
    update = 0
    while update < options.updates:
        report_is_due = (update + 1) % options.eval_every == 0 or update + 1 == options.updates
        started_at = time.monotonic()
        before = random.state
        optimizer.lr = learning_rate_of(options, update)
        report = train_update(gpt, accumulator, options, train_text, windows, random)
        progress.training_seconds += time.monotonic() - started_at
        if report.skipped:
            # No update: the same window again, at the lower scale.
            random.state = before
            continue
        if report_is_due:
            progress.validation_loss = validation_loss(gpt, validation_text, windows)
        update = report.update_count
        progress.show(update, report.loss, report_is_due)
    progress.end_line()
    return report


def draw_byte(logits, random):
    uniform = (random.next() >> 11) / 2.0**53
    highest = max(logits)
    probabilities = [math.exp((logit - highest) / TEMPERATURE) for logit in logits]
    # One after the other, as in the C program; sum() may round differently.
    total = 0.0
    for probability in probabilities:
        total += probability
    threshold = uniform * total
    reached = 0.0
    for byte, probability in enumerate(probabilities):
        reached += probability
        if reached > threshold:
            return byte
    return VOCABULARY - 1


def print_byte(byte):
    """Text stays as it is, UTF-8 too; what would move a terminal's cursor does not."""
    is_text = byte == 0x0A or (byte >= 0x20 and byte != 0x7F)
    sys.stdout.buffer.write(bytes([byte]) if is_text else b"?")
    sys.stdout.buffer.flush()


def print_sample(gpt, options):
    """The model always gets a whole window: what lies after the last byte cannot be seen from it."""
    window = np.zeros((1, options.context), np.int32)
    window[0, 0] = ord("\n")
    length = 1
    random = Random(options.seed, Random.SAMPLE)
    with ga.no_grad():
        for _ in range(options.sample):
            hidden = ga.slice(gpt.hidden(ga.tensor(window)), 1, length - 1, length)
            byte = draw_byte(gpt.logits(hidden).numpy().ravel().tolist(), random)
            print_byte(byte)
            if length < options.context:
                length += 1
            else:
                window[0, :-1] = window[0, 1:]
            window[0, length - 1] = byte
            stop_if_interrupted()


def run(options, progress):
    train_text, validation_text = read_text(options.text, options.context)
    if options.threads is not None:
        ga.set_num_threads(options.threads)
    ga.set_compute_dtype(COMPUTE_DTYPES[options.compute])
    gpt = GPT(
        options.layers,
        options.channels,
        options.heads,
        options.context,
        options.checkpointing,
        Random(options.seed, Random.WEIGHTS),
    )
    progress.start(options.updates, options.batch * options.context)
    report = train(gpt, options, train_text, validation_text, progress)
    if options.sample > 0:
        print("\n------ sample ------", flush=True)
        print_sample(gpt, options)
        print("\n--------------------\n")
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    print(
        f"RESULT updates={report.update_count} train_loss={report.loss:.6f} "
        f"val_loss={progress.validation_loss:.6f} "
        f"tokens_per_s={progress.tokens_per_second(options.updates):.0f} peak_rss_mb={peak_rss_mb:.1f} "
        f"weights_sha256={gpt.sha256()}",
        flush=True,
    )


def main():
    progress = Progress()
    try:
        if sys.stdout is None:
            raise OSError
        run(parse_options(), progress)
        return 0
    except Failure as failure:
        sentence, exit_status = failure, failure.exit_status
    except ga.GAError as error:
        sentence, exit_status = error, 1
    except MemoryError:
        sentence, exit_status = "out of memory: choose a smaller model, --context or --micro-batch.", 1
    except OSError:
        sentence, exit_status = "the output could not be written.", 1
        # What is still buffered cannot be written at the interpreter's exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    progress.end_line()
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
