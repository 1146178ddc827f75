"""Tokens per second of whole updates, and the share of the multiply-add peak."""

from __future__ import annotations

from lab.lab import Lab
from lab.rows import Measured, Row, at_least

from .gpt_runs import Comparison, gpt2, gpt_char


def speed(comparison: Comparison) -> Measured:
    peer = comparison.fastest_peer()
    ours, theirs = comparison.tokens_per_second("ours"), comparison.tokens_per_second(peer)
    others = [
        f"{who} {comparison.tokens_per_second(who):,.0f} tokens/s"
        for who in comparison.answers
        if who not in ("ours", peer)
    ]
    return Measured(
        ours,
        theirs,
        "tokens/s",
        ours / theirs,
        peak_share=comparison.peak_share("ours"),
        peer_peak_share=comparison.peak_share(peer),
        notes=[f"the peer is PyTorch {peer}" + "".join(f"; {other}" for other in others), *comparison.notes],
        is_valid=comparison.same_work,
    )


def peak_share(lab: Lab, dtype: str) -> Measured:
    comparison = gpt2(lab, dtype)
    share = comparison.peak_share("ours")
    return Measured(
        comparison.gflops("ours"),
        comparison.peak_gflops(),
        "GFLOP/s",
        share,
        peak_share=share,
        peer_peak_share=comparison.peak_share("eager"),
        notes=[f"the peer is the {dtype} multiply-add peak of {lab.threads} threads"],
        is_valid=comparison.same_work,
    )


GPT_CHAR = "GPT 10.8 M, T=256, 4 micro-batches of 8"
GPT2 = "GPT-2 124 M, T=256, 4 micro-batches of 4"

ROWS = [
    Row("gpt-char-f32", GPT_CHAR, at_least(1.35), lambda lab: speed(gpt_char(lab, "f32"))),
    Row("gpt-char-bf16", GPT_CHAR, at_least(1.5), lambda lab: speed(gpt_char(lab, "bf16"))),
    Row("gpt2-124m-f32", GPT2, at_least(1.4), lambda lab: speed(gpt2(lab, "f32"))),
    Row("gpt2-124m-bf16", GPT2, at_least(1.6), lambda lab: speed(gpt2(lab, "bf16"))),
    Row("gpt2-peak-share-f32", GPT2, at_least(0.85), lambda lab: peak_share(lab, "f32")),
    Row("gpt2-peak-share-bf16", GPT2, at_least(0.75), lambda lab: peak_share(lab, "bf16")),
]
