#!/usr/bin/env python3
"""Trains a byte-level GPT on a text file, with numpy and the ctypes binding of gradaccum.

The model is GPT-2's: pre-norm blocks, learned positions, and a head that shares the token embedding. A
batch is computed in micro-batches of any size; the weights come out the same to the last bit, as does every
number of examples/c/train_gpt.c, which is the same program.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import resource
import signal
import stat
import sys
import time
from pathlib import Path

PROGRAM = os.path.basename(sys.argv[0])
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

interrupted = False


def on_interrupt(signal_number, frame):
    """Lets the loops end the program at a good place; a second Ctrl-C ends it where it stands."""
    global interrupted
    interrupted = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# Before the imports that take a moment, so that there is no moment for a traceback.
signal.signal(signal.SIGINT, on_interrupt)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))
try:
    import numpy as np

    import gradaccum as ga
except ImportError as error:
    sys.exit(f"{PROGRAM}: {error}")

VOCABULARY = 256
LAYER_NORM_EPS = 1e-5
INIT_STANDARD_DEVIATION = 0.02
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1
VALIDATION_WINDOWS = 32
TEMPERATURE = 0.6

LARGEST_SIZE = 10**9
LARGEST_SEED = 2**63 - 1
LARGEST_THREADS = 1024

REDRAWS_PER_SECOND = 10.0


class Failure(Exception):
    """One sentence for stderr, and the exit status."""

    def __init__(self, sentence, exit_status=1):
        super().__init__(sentence)
        self.exit_status = exit_status


def stop_if_interrupted():
    if interrupted:
        raise Failure("interrupted.", EXIT_INTERRUPTED)


# ====== Options ======


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
    add_integer("--layers", 1, 3, "transformer blocks")
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
    add_integer("--updates", 1, 2400, "optimizer updates")
    add("--learning-rate", "X", number("--learning-rate"), 6e-3, "highest learning rate of AdamW")
    add_integer("--warmup", 0, 100, "updates until it is reached; a cosine to a tenth of it follows")
    add("--clip", "X", number("--clip", True), 1.0, "largest global gradient norm, 0 for no limit")
    add_integer("--seed", 0, 1, "of the weights, the batches and the sample", LARGEST_SEED)
    add_integer("--threads", 1, None, "(all CPUs); it changes no bit of the result", LARGEST_THREADS)
    add_integer("--eval-every", 1, 200, "updates between two validation losses")
    add_integer("--sample", 0, 600, "bytes of text to generate in the end")
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


# ====== Text and random numbers ======


def read_text(path, context):
    """The training and the validation split, as arrays of bytes."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise Failure(f"--text '{path}' cannot be read: it is no file.", EXIT_USAGE)
            text = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise Failure(f"--text '{path}' cannot be read: {error.strerror}.", EXIT_USAGE) from None
    except MemoryError:
        raise Failure(f"--text '{path}' is too large for the memory.") from None
    train_length = len(text) // 10 * 9
    train, validation = text[:train_length], text[train_length:]
    if len(text) == 0:
        raise Failure(f"--text '{path}' is empty.", EXIT_USAGE)
    if min(len(train), len(validation)) <= context:
        raise Failure(
            f"--text '{path}' is too short for --context {context}: it has {len(train)} bytes for training "
            f"and {len(validation)} for validation, and each needs {context + 1}.",
            EXIT_USAGE,
        )
    return train, validation


class Random:
    """SplitMix64 (Steele, Lea and Flood, 2014). Each use of a seed has its own sequence, so that one does not
    shift another."""

    WEIGHTS, BATCHES, SAMPLE = 0, 1, 2
    MASK = 2**64 - 1

    def __init__(self, seed, use):
        self.state = seed
        self.state = (self.next() + use) & self.MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & self.MASK
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & self.MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & self.MASK
        return z ^ z >> 31


def windows_at(text, starts, context):
    """Tensors [windows, context] of the bytes from each start on, and of the byte after each of them."""
    windows = np.stack([text[start : start + context + 1] for start in starts]).astype(np.int32)
    return ga.tensor(windows[:, :-1]), ga.tensor(windows[:, 1:])


# ====== The model ======


class GPT:
    """The parameters are made, and listed, in the order of the C program. A tensor is freed with its last
    reference, so here a function's end does what a scope does there."""

    def __init__(self, layers, channels, heads, context, random):
        self.channels = channels
        self.heads = heads
        self.random = random
        self.parameters = []
        # As in GPT-2: the sum of all the branches that are added to the residual stream keeps its size.
        residual_deviation = INIT_STANDARD_DEVIATION / math.sqrt(2.0 * layers)

        self.token_embedding = self.add_matrix("wte.weight", VOCABULARY, channels)
        self.position_embedding = self.add_matrix("wpe.weight", context, channels)
        self.blocks = [self.add_block(f"h.{i}.", residual_deviation) for i in range(layers)]
        self.norm = self.add_norm("ln_f")

    def add_parameter(self, name, shape):
        self.parameters.append(ga.zeros(shape).set_name(name))
        return self.parameters[-1]

    def add_matrix(self, name, rows, columns, deviation=INIT_STANDARD_DEVIATION):
        return self.add_parameter(name, (rows, columns)).normal_(0.0, deviation, seed=self.random.next())

    def add_norm(self, name):
        gain = self.add_parameter(name + ".weight", (self.channels,)).fill_(1.0)
        return gain, self.add_parameter(name + ".bias", (self.channels,))

    def add_linear(self, name, outputs, inputs, deviation=INIT_STANDARD_DEVIATION):
        weight = self.add_matrix(name + ".weight", outputs, inputs, deviation)
        return weight, self.add_parameter(name + ".bias", (outputs,))

    def add_block(self, prefix, residual_deviation):
        c = self.channels
        return {
            "norm1": self.add_norm(prefix + "ln_1"),
            "qkv": self.add_linear(prefix + "attn.c_attn", 3 * c, c),
            "projection": self.add_linear(prefix + "attn.c_proj", c, c, residual_deviation),
            "norm2": self.add_norm(prefix + "ln_2"),
            "up": self.add_linear(prefix + "mlp.c_fc", 4 * c, c),
            "down": self.add_linear(prefix + "mlp.c_proj", c, 4 * c, residual_deviation),
        }

    def block_forward(self, block, x):
        c = self.channels
        h = ga.layer_norm(x, *block["norm1"], eps=LAYER_NORM_EPS)
        qkv = ga.linear(h, *block["qkv"])
        q, k, v = (ga.slice(qkv, -1, i * c, (i + 1) * c) for i in range(3))
        h = ga.causal_attention(q, k, v, self.heads)
        x = x + ga.linear(h, *block["projection"])

        h = ga.layer_norm(x, *block["norm2"], eps=LAYER_NORM_EPS)
        h = ga.gelu(ga.linear(h, *block["up"]), approximate="tanh")
        return x + ga.linear(h, *block["down"])

    def hidden(self, tokens):
        """tokens [windows, context] gives [windows, context, channels]: what the head turns into logits."""
        x = ga.embedding(self.token_embedding, tokens) + self.position_embedding
        for block in self.blocks:
            x = self.block_forward(block, x)
        return ga.layer_norm(x, *self.norm, eps=LAYER_NORM_EPS)

    def logits(self, hidden):
        return ga.linear(hidden, self.token_embedding)

    def loss(self, tokens, targets):
        return ga.cross_entropy(self.logits(self.hidden(tokens)), targets, reduction="sum")

    def sha256(self):
        sha256 = hashlib.sha256()
        for parameter in self.parameters:
            sha256.update(parameter.numpy())
        return sha256.hexdigest()


# ====== Progress ======


class Progress:
    """A terminal has one line that is redrawn; anything else gets a line where a report is due."""

    def __init__(self):
        self.is_terminal = os.isatty(1)
        self.line_is_open = False

    def start(self, updates, tokens_per_update):
        self.updates = updates
        self.tokens_per_update = tokens_per_update
        self.started_at = time.monotonic()
        self.drawn_at = 0.0
        self.training_seconds = 0.0  # the updates alone, so that evaluations do not count as slow training
        self.validation_loss = None

    def tokens_per_second(self, updates_done):
        return updates_done * self.tokens_per_update / self.training_seconds

    def show(self, updates_done, loss, report_is_due):
        now = time.monotonic()
        redraw = self.is_terminal and now - self.drawn_at >= 1.0 / REDRAWS_PER_SECOND
        if not (report_is_due or redraw):
            return
        seconds_left = int((now - self.started_at) / updates_done * (self.updates - updates_done) + 0.5)
        validation = "" if self.validation_loss is None else f"  validation {self.validation_loss:.4f}"
        line = (
            f"update {updates_done}/{self.updates}  loss {loss:.4f}{validation}  "
            f"{self.tokens_per_second(updates_done):.0f} tokens/s  "
            f"{seconds_left // 60}:{seconds_left % 60:02d} left"
        )
        print(f"\r{line}\033[K" if self.is_terminal else f"{line}\n", end="", flush=True)
        self.line_is_open = self.is_terminal
        self.drawn_at = now

    def end_line(self):
        if self.line_is_open:
            print(flush=True)
            self.line_is_open = False


# ====== Training ======


def learning_rate_of(options, update):
    """Linear warmup, then a cosine from the highest learning rate to a tenth of it."""
    if update < options.warmup:
        return options.learning_rate * ((update + 1) / options.warmup)
    done = (update - options.warmup) / (options.updates - options.warmup)
    return options.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def train_update(gpt, accumulator, options, text, random):
    """One update: the batch in micro-batches, the last of them with what is left."""
    for done in range(0, options.batch, options.micro_batch):
        rows = min(options.micro_batch, options.batch - done)
        starts = [random.next() % (len(text) - options.context) for _ in range(rows)]
        loss = gpt.loss(*windows_at(text, starts, options.context))
        accumulator.accumulate(loss, weight=rows * options.context)
        stop_if_interrupted()
    report = accumulator.step()
    if report.skipped:
        raise Failure("a gradient is no finite number any more: choose a lower --learning-rate.")
    return report


def validation_loss(gpt, text, context):
    """The mean loss of windows spread evenly over the text. They are computed one at a time, so that the sum,
    and with it the last digit, does not depend on --micro-batch."""
    last_start = len(text) - context - 1
    total = 0.0
    with ga.no_grad():
        for i in range(VALIDATION_WINDOWS):
            start = last_start * i // (VALIDATION_WINDOWS - 1)
            total += gpt.loss(*windows_at(text, [start], context)).item()
            stop_if_interrupted()
    return total / (VALIDATION_WINDOWS * context)


def train(gpt, options, train_text, validation_text, progress):
    """Returns the report of the last update."""
    optimizer = ga.AdamW(gpt.parameters, lr=options.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    accumulator = ga.Accumulator(optimizer, max_grad_norm=options.clip)
    random = Random(options.seed, Random.BATCHES)
    for update in range(options.updates):
        report_is_due = (update + 1) % options.eval_every == 0 or update + 1 == options.updates
        started_at = time.monotonic()
        optimizer.lr = learning_rate_of(options, update)
        report = train_update(gpt, accumulator, options, train_text, random)
        progress.training_seconds += time.monotonic() - started_at
        if report_is_due:
            progress.validation_loss = validation_loss(gpt, validation_text, options.context)
        progress.show(update + 1, report.loss, report_is_due)
    progress.end_line()
    return report


# ====== The sample ======


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


# ====== The program ======


def run(options, progress):
    train_text, validation_text = read_text(options.text, options.context)
    if options.threads is not None:
        ga.set_num_threads(options.threads)
    gpt = GPT(
        options.layers,
        options.channels,
        options.heads,
        options.context,
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    progress.end_line()
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
