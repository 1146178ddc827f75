"""The model: GPT-2 on bytes, with pre-norm blocks, learned positions, and the token embedding as head."""

from __future__ import annotations

import functools
import hashlib
import math

import gradaccum as ga

VOCABULARY = 256
LAYER_NORM_EPS = 1e-5
INIT_STANDARD_DEVIATION = 0.02


class GPT:
    """The parameters are made, and listed, in the order of the C program. A tensor is freed with its last
    reference, so here a function's end does what a scope does there."""

    def __init__(self, layers, channels, heads, context, checkpointing, random):
        self.channels = channels
        self.checkpointing = checkpointing
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
            forward = functools.partial(self.block_forward, block)
            x = ga.checkpoint(forward, x) if self.checkpointing else forward(x)
        return ga.layer_norm(x, *self.norm, eps=LAYER_NORM_EPS)

    def logits(self, hidden):
        """In float32, whatever the head computes in."""
        return ga.cast(ga.linear(hidden, self.token_embedding), ga.float32)

    def loss(self, tokens, targets):
        return ga.linear_cross_entropy(
            self.hidden(tokens), self.token_embedding, targets, reduction="sum"
        )

    def sha256(self):
        sha256 = hashlib.sha256()
        for parameter in self.parameters:
            sha256.update(parameter.numpy())
        return sha256.hexdigest()
