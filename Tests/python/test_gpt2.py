"""The gpt2 programs of examples/, on a real text: models and backward of Hugging Face and JAX, and our window."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, environment
from tally import TRUE_WEIGHTS

RESULT = re.compile(
    r"RESULT updates=(\d+) whole=(\S+) ours=(\S+) plain=(\S+) distance_of_ours=(\S+) of_plain=(\S+) of_rounding=(\S+) "
    r"tolerance=(\S+)"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not os.environ.get("TEXT") and shutil.which("bible") is None:
        pytest.skip("the program bible is not installed: make foreign installs it")
    path = tmp_path_factory.mktemp("text") / "text.txt"
    subprocess.run([str(ROOT / "examples" / "text.sh"), str(path)], check=True)
    return path


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize(("program", "modules"), [("torch", ("torch", "transformers")), ("jax", ("jax", "optax"))])
def test_micro_batches_follow_whole_batches_where_the_plain_recipe_does_not(program, modules, text, tmp_path):
    """50 updates by AdamW: ours is as far away as rounding alone, and the mean of means a hundred times the tolerance."""
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed: make foreign runs this")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: make foreign runs this")
    plot = tmp_path / "curves.png"
    command = [sys.executable, str(ROOT / "examples" / "python" / f"gpt2_{program}.py")]
    # One thread each: the model is too small to share, and a busy machine makes two wait for each other.
    done = subprocess.run(
        [*command, "--text", str(text), "--plot", str(plot)],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    match = RESULT.fullmatch(done.stdout.rstrip("\n").rpartition("\n")[2])
    assert match, done.stdout
    updates, whole, ours, _, of_ours, of_plain, _, tolerance = map(float, match.groups())
    assert updates == 50 and abs(whole - ours) < 1e-4 and whole < 3
    assert of_ours <= tolerance < 2e-4 and of_plain > 20 * tolerance
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.law(TRUE_WEIGHTS)
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_unmodified_model_trains_under_autocast(half, monkeypatch):
    """Against whole batches by PyTorch with, in float16, its GradScaler. Logits round to 2^-8 or 2^-11."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make foreign runs this")
    pytest.importorskip("transformers", reason="transformers is not installed: make foreign runs this")
    monkeypatch.syspath_prepend(ROOT / "examples" / "python")
    import gpt2_torch as example
    import gradaccum as ga
    import gradaccum.torch as gat
    import verses

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dtype = getattr(torch, half)
    ours, theirs = example.make_model(), example.make_model()
    scaler = ga.LossScaler(2.0**12) if half == "float16" else None
    optimizer = ga.AdamW(gat.parameters(ours), lr=verses.LR, weight_decay=verses.WEIGHT_DECAY)
    accumulator = gat.Accumulator(optimizer, loss_scaler=scaler, accumulation_steps=3)
    expected_optimizer = example.adamw(theirs)
    peer = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaler is not None)
    for batch in verses.batches(verses.read(ROOT / "Tests" / "parity" / "genesis.txt"), 8, 6):
        for part in verses.cut(batch, 3):
            inputs, weight = example.arguments(part)
            with accumulator.micro_batch(weight) as micro_batch, torch.amp.autocast("cpu", dtype):
                loss = ours(**inputs).loss
                micro_batch.backward(loss)
            assert all(x.grad is None for x in ours.parameters())
        with torch.amp.autocast("cpu", dtype):
            expected = theirs(**example.arguments(batch)[0]).loss
        peer.scale(expected).backward()
        peer.step(expected_optimizer)
        peer.update()
        expected_optimizer.zero_grad()
        report = accumulator.last_report
        assert report.outcome == ga.Outcome.APPLIED
        assert abs(report.loss - expected.item()) < (2**-8 if scaler is None else 2**-11) * expected.item()
    torch.set_num_threads(threads)
