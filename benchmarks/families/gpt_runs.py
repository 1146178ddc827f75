"""Rounds of training a GPT, ours and the peers in turn, that several rows read."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lab.child import ChildFailed
from lab.lab import Lab

Answer = dict[str, Any]

MODELS: dict[str, dict[str, int]] = {
    "gpt-char": dict(layers=6, channels=384, heads=6, context=256, batch=8, vocabulary=256, window=4),
    "gpt2-124m": dict(layers=12, channels=768, heads=12, context=256, batch=4, vocabulary=50257, window=4),
}
# How far the two may be apart and still have done the same work: in the first update, which starts from the same
# weights and has its norm from PyTorch in float64, and later, where AdamW has made much of the rounding in gradients
# that are nearly zero and PyTorch clips by a norm added up in float32.
FIRST_TOLERANCE = {"f32": 1e-4, "bf16": 2e-2}
LATER_TOLERANCE = {"f32": 1e-2, "bf16": 1e-1}


@dataclass
class Comparison:
    """What one pair of rounds after the other has given, by who trained: ours, eager, compiled, jax."""

    dtype: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    same_work: bool = True

    def seconds(self, who: str) -> float:
        return median(second for answer in self.answers[who] for second in answer["seconds"])

    def tokens_per_second(self, who: str) -> float:
        return self.answers["ours"][0]["tokens"] / self.seconds(who)

    @property
    def flops(self) -> float:
        return float(self.answers["ours"][0]["flops"])

    def gflops(self, who: str) -> float:
        return self.flops / self.seconds(who) / 1e9

    def peak_gflops(self) -> float:
        """The highest that was measured around any update: a peak that others have lowered would flatter the share."""
        return max(peak for answers in self.answers.values() for answer in answers for peak in answer["peaks"])

    def peak_share(self, who: str) -> float:
        return self.gflops(who) / self.peak_gflops()

    def peak_mib(self, who: str) -> float:
        return median(answer["peak_mib"] for answer in self.answers[who])

    def fastest_peer(self) -> str:
        peers = [who for who in ("eager", "compiled") if who in self.answers]
        return min(peers, key=self.seconds)


def child_of(lab: Lab, who: str, settings: dict[str, Any]) -> Answer:
    if who == "ours":
        return lab.training("gpt_ours", settings)
    if who == "jax":
        return lab.training("gpt_jax", settings)
    return lab.training("gpt_pytorch", {**settings, "compile": who == "compiled"})


def compare_work(comparison: Comparison, who: str) -> None:
    """The same weights and data give nearly the same losses and norms, or else the comparison means nothing."""
    for quantity in ("losses", "gradient_norms"):
        ours = comparison.answers["ours"][0][quantity]
        peers = comparison.answers[who][0].get(quantity, [])
        for index, (a, b) in enumerate(zip(ours, peers)):
            tolerance = (LATER_TOLERANCE if index else FIRST_TOLERANCE)[comparison.dtype]
            if abs(a - b) > tolerance * abs(b):
                comparison.same_work = False
                comparison.notes.append(f"not the same work as {who}: {quantity} {a:.6g} against {b:.6g}")
                return


def train_in_turn(
    lab: Lab, settings: dict[str, Any], peers: list[str], rounds: int, once: tuple[str, ...] = ()
) -> Comparison:
    """Ours is first, and the order turns round each time. Who is named in `once` runs in the first round only;
    a peer that cannot run is a note."""
    comparison = Comparison(settings["dtype"])
    for index in range(rounds):
        turn = ["ours", *peers]
        for who in turn if index % 2 == 0 else reversed(turn):
            if (index > 0 and who in once) or (who in peers and index > 0 and who not in comparison.answers):
                continue
            lab.progress(f"round {index + 1} of {rounds}: {who}")
            try:
                answer = child_of(lab, who, settings)
            except ChildFailed as error:
                if who in ("ours", "eager"):
                    raise
                comparison.notes.append(f"{who} cannot run here: {error}")
                continue
            comparison.answers.setdefault(who, []).append(answer)
    for who in peers:
        if who in comparison.answers:
            compare_work(comparison, who)
    return comparison


def gpt_char(lab: Lab, dtype: str) -> Comparison:
    settings = {
        "config": MODELS["gpt-char"],
        "dtype": dtype,
        "warm_up": MODELS["gpt-char"]["window"],
        "updates": lab.rounds(3, 2),
    }
    peers = ["eager", "compiled"] + (["jax"] if dtype == "f32" else [])
    rounds = lab.rounds(3, 1)
    return lab.once(f"gpt-char {dtype}", lambda: train_in_turn(lab, settings, peers, rounds, once=("jax",)))


def gpt2(lab: Lab, dtype: str) -> Comparison:
    """A warm-up of two micro-batches, the second of which adds to gradients that there are."""
    settings = {"config": MODELS["gpt2-124m"], "dtype": dtype, "warm_up": 2, "updates": 1}
    rounds = lab.rounds(3, 1)
    return lab.once(f"gpt2 {dtype}", lambda: train_in_turn(lab, settings, ["eager"], rounds))


def checkpointing_settings(dtype: str, updates: int) -> dict[str, Any]:
    return {
        "config": MODELS["gpt2-124m"],
        "dtype": dtype,
        "warm_up": 2,
        "updates": updates,
        "checkpointing": True,
    }


def gpt2_checkpointing(lab: Lab, dtype: str) -> Answer:
    """Memory hardly varies, so one short run of ours."""
    settings = checkpointing_settings(dtype, updates=1)
    return lab.once(f"gpt2 checkpointing {dtype}", lambda: lab.training("gpt_ours", settings))


def gpt2_pytorch_checkpointing(lab: Lab, dtype: str) -> Answer:
    """The warm-up, which reaches the peak, is enough where no time is read."""
    settings = checkpointing_settings(dtype, updates=0)
    return lab.once(f"gpt2 PyTorch checkpointing {dtype}", lambda: lab.training("gpt_pytorch", settings))
