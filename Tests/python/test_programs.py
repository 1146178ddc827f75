"""The programs of examples/, run as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import ROOT, environment, isas

BUILT = Path(os.environ.get("GRADACCUM_EXAMPLES", ROOT / "build" / "examples"))
C_GPT = [str(BUILT / "train_gpt")]
PYTHON_GPT = [sys.executable, str(ROOT / "examples" / "python" / "train_gpt.py")]
PROGRAMS = {"c": C_GPT, "python": PYTHON_GPT}
TEXT = ROOT / "Tests" / "parity" / "genesis.txt"

SMALL = [
    "--layers",
    "2",
    "--channels",
    "24",
    "--heads",
    "3",
    "--context",
    "17",
    "--batch",
    "7",
    "--updates",
    "6",
    "--warmup",
    "2",
    "--eval-every",
    "3",
    "--sample",
    "20",
    "--seed",
    "5",
]
RESULT = re.compile(
    r"RESULT updates=(\d+) train_loss=([0-9.]+) val_loss=([0-9.]+) tokens_per_s=(\d+) peak_rss_mb=([0-9.]+) "
    r"weights_sha256=([0-9a-f]{64})"
)


@pytest.fixture(scope="module", autouse=True)
def _built():
    assert (BUILT / "train_gpt").exists(), f"{BUILT} has no train_gpt: run `make examples` first"


def run(program: list[str], *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *options],
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
    )


def train(program: list[str], *options: str, **variables: str) -> dict[str, str]:
    """Runs a training and returns the fields of its last line, and its sample."""
    done = run(program, "--text", str(TEXT), *SMALL, *options, **variables)
    assert done.returncode == 0 and done.stderr == "", f"exit status {done.returncode}: {done.stderr}"
    last = done.stdout.rstrip("\n").rpartition("\n")[2]
    match = RESULT.fullmatch(last)
    assert match, f"the last line is {last!r}"
    names = ("updates", "train_loss", "val_loss", "tokens_per_s", "peak_rss_mb", "weights_sha256")
    sample = done.stdout.partition("------ sample ------\n")[2].partition("\n--------------------\n")[0]
    return {**dict(zip(names, match.groups())), "sample": sample}


def same(result: dict[str, str]) -> tuple[str, ...]:
    """What does not depend on the machine's speed."""
    return tuple(result[name] for name in ("updates", "train_loss", "val_loss", "weights_sha256", "sample"))


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return train(C_GPT)


def test_result_is_plausible(reference):
    """6 updates of a model that starts at ln(256) = 5.55 and has seen English since."""
    assert reference["updates"] == "6"
    assert 2.0 < float(reference["train_loss"]) < 5.6 and 2.0 < float(reference["val_loss"]) < 5.6
    assert int(reference["tokens_per_s"]) > 0 and 1 < float(reference["peak_rss_mb"]) < 2000
    assert len(reference["sample"]) > 0


@pytest.mark.parametrize(("micro_batch", "threads"), [(7, 1), (1, 2), (2, 3), (3, 1), (5, 4), (6, 2)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_one_hash_for_every_split_and_number_of_threads_in_c_and_python(
    reference, program, micro_batch, threads
):
    """7 is divided by none of 2, 3, 5 and 6: the last micro-batch is a ragged one."""
    found = train(PROGRAMS[program], "--micro-batch", str(micro_batch), "--threads", str(threads))
    assert same(found) == same(reference)


@pytest.fixture(scope="module", params=["bf16", "f16"])
def half(request) -> tuple[str, dict[str, str]]:
    """A type to compute in, and what it comes to: in float16, after some windows that have overflowed."""
    return request.param, train(C_GPT, "--compute", request.param)


@pytest.mark.parametrize(("micro_batch", "threads"), [(7, 2), (1, 1), (3, 3), (5, 4)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_one_hash_for_every_split_in_half_precision_too(reference, half, program, micro_batch, threads):
    compute, expected = half
    options = ["--compute", compute, "--micro-batch", str(micro_batch), "--threads", str(threads)]
    assert same(train(PROGRAMS[program], *options)) == same(expected)
    assert expected["weights_sha256"] != reference["weights_sha256"]
    assert expected["updates"] == reference["updates"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_hash_for_every_split_of_sums_in_bf16_too(reference, program):
    found = {
        same(train(PROGRAMS[program], "--sums", "bf16-stochastic", "--micro-batch", size, "--threads", threads))
        for size, threads in (("7", "1"), ("3", "3"), ("1", "2"))
    }
    assert len(found) == 1 and same(reference) not in found
    assert found == {same(train(C_GPT, "--sums", "bf16-stochastic"))}


@pytest.mark.parametrize("program", PROGRAMS)
def test_checkpointing_changes_no_bit_in_half_precision(half, program):
    compute, expected = half
    found = train(PROGRAMS[program], "--compute", compute, "--checkpointing", "--micro-batch", "3")
    assert same(found) == same(expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_checkpointing_changes_no_bit(reference, program):
    assert same(train(PROGRAMS[program], "--checkpointing", "--micro-batch", "3")) == same(reference)


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", "6"],
        ["--clip", "0"],
        ["--learning-rate", "1e-4", "--warmup", "0"],
        ["--heads", "1", "--layers", "1"],
        ["--context", "1", "--batch", "1"],
        ["--channels", "33"],
        ["--clip=0.25", "--sample=0", "--updates=1"],
        ["--compute", "bf16", "--context", "16"],
        ["--compute=bf16", "--context", "1", "--batch", "1"],
        ["--compute=f16", "--context", "16", "--clip", "0"],
        ["--sums=bf16-kahan", "--micro-batch", "3"],
        ["--sums", "bf16", "--compute", "f16"],
    ],
)
def test_c_and_python_agree_for_other_options(reference, options):
    c, python = train(C_GPT, *options), train(PYTHON_GPT, *options)
    assert same(c) == same(python)
    assert c["weights_sha256"] != reference["weights_sha256"]


@pytest.mark.parametrize("isa", isas())
def test_c_and_python_agree_on_each_instruction_set(isa):
    found = {
        same(train(program, "--micro-batch", str(size), GRADACCUM_ISA=isa))
        for program, size in ((C_GPT, 7), (C_GPT, 3), (PYTHON_GPT, 2))
    }
    assert len(found) == 1


def one_sentence(done: subprocess.CompletedProcess[str], exit_status: int, *words: str) -> None:
    """The program ended with a status and one line on stderr that says why."""
    assert done.returncode == exit_status, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    assert done.stdout == ""
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
class TestBadText:
    def test_missing(self, program, tmp_path):
        path = str(tmp_path / "missing.txt")
        one_sentence(run(PROGRAMS[program], "--text", path, *SMALL), 2, "--text", path)

    def test_empty(self, program, tmp_path):
        path = tmp_path / "empty.txt"
        path.touch()
        one_sentence(run(PROGRAMS[program], "--text", str(path), *SMALL), 2, "--text", str(path), "empty")

    def test_shorter_than_the_context(self, program, tmp_path):
        path = tmp_path / "short.txt"
        for length in (1, 17, 18, 170):
            path.write_bytes(TEXT.read_bytes()[:length])
            one_sentence(run(PROGRAMS[program], "--text", str(path), *SMALL), 2, str(path), "--context 17")

    def test_just_long_enough(self, program, tmp_path):
        path = tmp_path / "enough.txt"
        path.write_bytes(TEXT.read_bytes()[:180])
        done = run(PROGRAMS[program], "--text", str(path), *SMALL)
        assert done.returncode == 0, done.stderr

    def test_directory(self, program, tmp_path):
        one_sentence(run(PROGRAMS[program], "--text", str(tmp_path), *SMALL), 2, str(tmp_path))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, program, tmp_path):
        path = tmp_path / "secret.txt"
        path.write_bytes(TEXT.read_bytes())
        path.chmod(0)
        one_sentence(run(PROGRAMS[program], "--text", str(path), *SMALL), 2, str(path))

    def test_any_bytes_are_a_text(self, program, tmp_path):
        path = tmp_path / "bytes"
        path.write_bytes(bytes(range(256)) * 4)
        done = run(PROGRAMS[program], "--text", str(path), *SMALL)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--layers", "0"], "--layers"),
        (["--channels", "-4"], "--channels"),
        (["--heads", "5"], "--heads"),
        (["--context", "x"], "--context"),
        (["--batch", "1e3"], "--batch"),
        (["--micro-batch", "8"], "--micro-batch"),
        (["--updates", "99999999999999999999"], "--updates"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--clip", "-1"], "--clip"),
        (["--seed", ""], "--seed"),
        (["--threads", "0"], "--threads"),
        (["--sample"], "--sample"),
        (["--compute", "half"], "--compute"),
        (["--compute", ""], "--compute"),
        (["--sums", "f16"], "--sums"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_option_is_named(program, options, word):
    one_sentence(run(PROGRAMS[program], "--text", str(TEXT), *SMALL, *options), 2, word)


@pytest.mark.parametrize("program", PROGRAMS)
def test_text_is_needed(program):
    one_sentence(run(PROGRAMS[program], *SMALL), 2, "--text")


@pytest.mark.parametrize("program", PROGRAMS)
def test_model_that_does_not_fit_the_memory_is_a_sentence(program):
    options = ["--channels", "1000000000", "--heads", "1", "--layers", "1"]
    one_sentence(run(PROGRAMS[program], "--text", str(TEXT), *SMALL, *options), 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_every_option(program):
    done = run(PROGRAMS[program], "--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in (
        "text",
        "layers",
        "channels",
        "heads",
        "context",
        "batch",
        "micro-batch",
        "updates",
        "learning-rate",
        "warmup",
        "clip",
        "seed",
        "threads",
        "eval-every",
        "sample",
        "checkpointing",
        "compute",
        "sums",
    ):
        assert f"--{option} " in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_interrupt_ends_the_training_at_once(program):
    child = subprocess.Popen(
        [*PROGRAMS[program], "--text", str(TEXT), *SMALL, "--updates", "1000000"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert "update" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and said.count("\n") == 1
    assert time.monotonic() - started < 30


RECIPE_RESULT = re.compile(
    r"RESULT updates=(\d+) accuracy=([0-9.]+) averaged_accuracy=([0-9.]+) weights_sha256=([0-9a-f]{64})"
)


def test_recipe_learns_and_has_one_hash_for_every_split():
    """With a warm-up, a cosine, a ramp, scaling and an average: all by the clock of samples."""
    program = [sys.executable, str(ROOT / "examples" / "python" / "recipe.py")]
    results = set()
    for micro_batch, threads in ((32, 1), (5, 2), (1, 3)):
        done = run(program, "--micro-batch", str(micro_batch), "--threads", str(threads))
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert {f"window {size}" for size in (32, 64, 128)} <= set(re.findall(r"window \d+", done.stdout))
        match = RECIPE_RESULT.fullmatch(done.stdout.rstrip("\n").rpartition("\n")[2])
        assert match, done.stdout
        results.add(match.groups())
    assert len(results) == 1
    updates, _, averaged, _ = results.pop()
    # 4000 samples in windows of 32, as many in windows of 64, and the rest in windows of 128.
    assert int(updates) == 125 + 63 + 125 and float(averaged) > 0.9


def test_own_gradients_finds_the_line():
    done = run([str(BUILT / "own_gradients")])
    assert done.returncode == 0 and done.stderr == "" and done.stdout
