"""Trains the GPT with JAX and optax.MultiSteps and prints the seconds of each update."""

from __future__ import annotations

import os

# Before JAX starts its threads, of which there is one per CPU that the process may run on.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])])

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_config import BETAS, EPS, LAYER_NORM_EPS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, GPTConfig
from timing import answer, peak_rss_mib, settings, timed_updates

Parameters = dict[str, jax.Array]


def layer_norm(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, axis=-1, epsilon=LAYER_NORM_EPS) * p[name + ".weight"] + p[name + ".bias"]


def linear(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def mean_loss(p: Parameters, config: GPTConfig, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    b, t = tokens.shape
    c, heads = config.channels, config.heads
    x = p["wte"][tokens] + p["wpe"]
    for layer in range(config.layers):
        prefix = f"h.{layer}."
        qkv = linear(p, prefix + "attn.c_attn", layer_norm(p, prefix + "ln_1", x))
        q, k, v = (part.reshape(b, t, heads, c // heads) for part in jnp.split(qkv, 3, axis=-1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, c)
        x = x + linear(p, prefix + "attn.c_proj", y)
        h = jax.nn.gelu(linear(p, prefix + "mlp.c_fc", layer_norm(p, prefix + "ln_2", x)), approximate=True)
        x = x + linear(p, prefix + "mlp.c_proj", h)
    logits = layer_norm(p, "ln_f", x) @ p["wte"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def main() -> None:
    wanted = settings()
    config = GPTConfig(**wanted["config"])
    parameters: Parameters = {name: jnp.asarray(array) for name, array in config.weights()}
    optimizer = optax.MultiSteps(
        optax.chain(
            optax.clip_by_global_norm(MAX_GRAD_NORM),
            optax.adamw(LEARNING_RATE, *BETAS, eps=EPS, weight_decay=WEIGHT_DECAY),
        ),
        every_k_schedule=config.window,
    )
    state = optimizer.init(parameters)

    def step(p: Parameters, state: optax.OptState, tokens: jax.Array, targets: jax.Array):
        loss, gradients = jax.value_and_grad(mean_loss)(p, config, tokens, targets)
        updates, state = optimizer.update(gradients, state, p)
        return optax.apply_updates(p, updates), state, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def update(micro_batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
        nonlocal parameters, state
        losses = []
        for tokens, targets in micro_batches:
            parameters, state, loss = compiled(parameters, state, tokens, targets)
            losses.append(loss)
        jax.block_until_ready(parameters)
        return float(np.mean([float(loss) for loss in losses]))

    batches = config.batches()
    losses = [update(next(batches))]
    times, results = timed_updates(update, batches, wanted)
    answer({**times, "losses": losses + results, "peak_mib": peak_rss_mib()})


if __name__ == "__main__":
    main()
