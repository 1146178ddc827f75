"""The command line of train_gpt."""

from __future__ import annotations

import argparse
import math

from console import EXIT_USAGE, PROGRAM, Failure

LARGEST_SIZE = 10**9
LARGEST_SEED = 2**63 - 1
MOST_LAYERS = 1000
MOST_THREADS = 1024
COMPUTE_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}

SUM_FORMATS = {
    "f32": "float32",
    "bf16-stochastic": "bfloat16_stochastic",
    "bf16-kahan": "bfloat16_kahan",
    "bf16": "bfloat16",
}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(f"{message.removeprefix('argument ')}; --help lists the options.", EXIT_USAGE)


def integer(option, lowest, highest=LARGEST_SIZE):
    def parse(text):
        digits = text.removeprefix("-")
        # int() would also take spaces, underscores and the digits of other scripts.
        is_integer = digits.isascii() and digits.isdigit() and len(digits) < 20
        if not is_integer or not lowest <= int(text) <= highest:
            raise Failure(
                f"{option} must be a whole number from {lowest} to {highest}, but it is '{text}'.", EXIT_USAGE
            )
        return int(text)

    return parse


def number(option, zero_is_allowed=False):
    def parse(text):
        try:
            # float() would also take spaces, underscores and "nan".
            value = float(text) if set(text) <= set("0123456789+-.eE") else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_is_allowed):
            allowed = "of at least 0" if zero_is_allowed else "greater than 0"
            raise Failure(f"{option} must be a number {allowed}, but it is '{text}'.", EXIT_USAGE)
        return value

    return parse


def choice(option, choices):
    def parse(text):
        if text not in choices:
            *first, last = choices
            raise Failure(f"{option} must be {', '.join(first)} or {last}, but it is '{text}'.", EXIT_USAGE)
        return text

    return parse


def parse_options():
    parser = Parser(
        prog=PROGRAM,
        usage="%(prog)s --text FILE [--option value]...",
        description="Trains a byte-level GPT on a text file and prints a sample of what it learned. "
        "The first 90 %% of the text is for training, the rest for validation.",
        allow_abbrev=False,
    )

    def add(option, metavar, parse, default, meaning):
        shown = "" if default is None else " (%(default)s)"
        parser.add_argument(option, metavar=metavar, type=parse, default=default, help=meaning + shown)

    def add_integer(option, lowest, default, meaning, highest=LARGEST_SIZE):
        add(option, "N", integer(option, lowest, highest), default, meaning)

    add("--text", "FILE", str, None, "the text")
    add_integer("--layers", 1, 3, "transformer blocks", MOST_LAYERS)
    add_integer("--channels", 1, 160, "width of the residual stream")
    add_integer("--heads", 1, 5, "attention heads, a divisor of --channels")
    add_integer("--context", 1, 64, "bytes that the model sees at once")
    add_integer("--batch", 1, 12, "windows of text per update")
    add_integer(
        "--micro-batch",
        1,
        None,
        "windows that are computed together (the whole batch); it changes memory and speed, and no bit of "
        "the result",
    )
    add_integer("--updates", 1, 3000, "optimizer updates")
    add("--learning-rate", "X", number("--learning-rate"), 6e-3, "highest learning rate of AdamW")
    add_integer("--warmup", 0, 100, "updates until it is reached; a cosine to a tenth of it follows")
    add("--clip", "X", number("--clip", True), 1.0, "largest global gradient norm, 0 for no limit")
    add_integer("--seed", 0, 1, "of the weights, the batches and the sample", LARGEST_SEED)
    add_integer("--threads", 1, None, "(all CPUs); it changes no bit of the result", MOST_THREADS)
    add_integer("--eval-every", 1, 200, "updates between two validation losses")
    add_integer("--sample", 0, 600, "bytes of text to generate in the end")
    parser.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute blocks again in backward instead of keeping their activations; it changes memory and "
        "speed, and no bit of the result",
    )
    add(
        "--compute",
        "f32|bf16|f16",
        choice("--compute", COMPUTE_DTYPES),
        "f32",
        "what matrix products multiply in; sums, weights and optimizer stay f32, and with f16 a dynamic loss "
        "scale keeps gradients in its range",
    )
    add(
        "--sums",
        "|".join(SUM_FORMATS),
        choice("--sums", SUM_FORMATS),
        "f32",
        "what sums of gradients are kept in, and how they are rounded",
    )
    options = parser.parse_args()

    if options.text is None:
        raise Failure("--text FILE is needed: the text to train on.", EXIT_USAGE)
    if options.channels % options.heads != 0:
        raise Failure(
            f"--heads {options.heads} does not divide --channels {options.channels}.", EXIT_USAGE
        )
    if options.micro_batch is None:
        options.micro_batch = options.batch
    if options.micro_batch > options.batch:
        raise Failure(
            f"--micro-batch {options.micro_batch} is more than --batch {options.batch}.", EXIT_USAGE
        )
    return options
