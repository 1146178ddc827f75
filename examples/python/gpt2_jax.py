#!/usr/bin/env python3
"""The same GPT-2 in JAX, through gradaccum.jax beside optax.MultiSteps, in padded micro-batches of uneven length.

Verses of a text are trained on four times, from the same weights: by optax.adamw in whole batches, and once more with the
samples of each batch in reverse; through gradaccum.jax in micro-batches; and in these by optax.MultiSteps, which takes
the mean of their gradients whatever they weigh. The exit status is 1 if ours does not follow the whole batches.
"""

from __future__ import annotations

import sys

import numpy as np
import verses

try:
    import jax
    import optax
    from jax import numpy as jnp
except ImportError as error:
    sys.exit(f"gpt2_jax.py: {error}: pip install jax optax")

import gradaccum as ga
import gradaccum.jax as gaj


def make_parameters():
    rng = np.random.default_rng(0)
    width = verses.CHANNELS

    def matrix(before, after):
        return jnp.asarray(rng.standard_normal((before, after)) * 0.02, jnp.float32)

    def linear(before, after):
        return {"weight": matrix(before, after), "bias": jnp.zeros(after)}

    def norm():
        return {"weight": jnp.ones(width), "bias": jnp.zeros(width)}

    def block():
        return {
            "norm_1": norm(),
            "attention": linear(width, 3 * width),
            "attention_out": linear(width, width),
            "norm_2": norm(),
            "mlp": linear(width, 4 * width),
            "mlp_out": linear(4 * width, width),
        }

    return {
        "tokens": matrix(verses.VOCABULARY, width),
        "positions": matrix(verses.CONTEXT, width),
        "blocks": [block() for _ in range(verses.LAYERS)],
        "norm": norm(),
    }


def linear(x, p):
    return x @ p["weight"] + p["bias"]


def norm(x, p):
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]


def attention(x, p):
    rows, length, width = x.shape
    heads = linear(x, p["attention"]).reshape(rows, length, 3, verses.HEADS, width // verses.HEADS)
    mixed = jax.nn.dot_product_attention(*(heads[:, :, part] for part in range(3)), is_causal=True)
    return linear(mixed.reshape(x.shape), p["attention_out"])


def mean_loss(params, tokens, mask):
    """Per token that is no padding. What lies after a token cannot be seen from it, padding included."""
    x = params["tokens"][tokens] + params["positions"][: tokens.shape[1]]
    for p in params["blocks"]:
        x = x + attention(norm(x, p["norm_1"]), p)
        x = x + linear(jax.nn.gelu(linear(norm(x, p["norm_2"]), p["mlp"])), p["mlp_out"])
    logits = norm(x, params["norm"]) @ params["tokens"].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()


loss_and_gradients = jax.jit(jax.value_and_grad(mean_loss))


def arguments(part):
    """Tokens and mask, as long as the context, so that there is one shape to compile for; and the weight."""
    tokens, mask, weight = verses.padded(part, verses.CONTEXT)
    return (tokens.astype(np.int32), mask.astype(np.float32)), weight


def adamw():
    return optax.adamw(verses.LR, weight_decay=verses.WEIGHT_DECAY)


def train_optax(params, data, micro_batches):
    """In whole batches where there is one micro-batch of each."""
    optimizer = optax.MultiSteps(adamw(), micro_batches)
    state, losses = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for batch in data:
        total, tokens = 0.0, 0
        for part in verses.cut(batch, micro_batches):
            inputs, weight = arguments(part)
            loss, gradients = loss_and_gradients(params, *inputs)
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            total, tokens = total + float(loss) * weight, tokens + weight
        losses.append(total / tokens)
    return losses


def train_ours(params, data, micro_batches):
    accumulator = gaj.Accumulator(
        params,
        lambda leaves: ga.AdamW(leaves, lr=verses.LR, weight_decay=verses.WEIGHT_DECAY),
        accumulation_steps=micro_batches,
    )
    losses = []
    for batch in data:
        for part in verses.cut(batch, micro_batches):
            inputs, weight = arguments(part)
            loss, gradients = loss_and_gradients(accumulator.params, *inputs)
            accumulator.accumulate(gradients, weight, loss=loss)
        losses.append(accumulator.last_report.loss)
    return losses


def main():
    options = verses.parse_options(__doc__)
    if options.batch % options.micro_batches != 0:
        sys.exit("gpt2_jax.py: --micro-batches has to divide --batch: optax.MultiSteps counts to a fixed number")
    data = list(verses.batches(verses.read(options.text), options.updates, options.batch))
    start = make_parameters()
    curves = verses.Curves(
        whole=train_optax(start, data, 1),
        in_reverse=train_optax(start, [batch[::-1] for batch in data], 1),
        ours=train_ours(start, data, options.micro_batches),
        plain=train_optax(start, data, options.micro_batches),
        peer="optax.MultiSteps",
        tokens=max(arguments(batch)[1] for batch in data),
    )
    if options.plot:
        curves.draw(options.plot, "GPT-2 in JAX in padded, uneven micro-batches")
    return curves.print()


if __name__ == "__main__":
    sys.exit(main())
