/*
 * gpt.h - the model: GPT-2 on bytes, with pre-norm blocks, learned positions, and the token embedding as head
 */
#ifndef GPT_H
#define GPT_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "gradaccum.h"

#include "console.h"
#include "random.h"

#define VOCABULARY 256
#define LAYER_NORM_EPS 1e-5
#define INIT_STANDARD_DEVIATION 0.02

#define PARAMETERS_PER_BLOCK 12
#define PARAMETERS_OUTSIDE_BLOCKS 4

struct block {
    int64_t channels;
    int32_t heads;
    ga_tensor *norm1_gain, *norm1_bias;
    ga_tensor *qkv_weight, *qkv_bias;
    ga_tensor *projection_weight, *projection_bias;
    ga_tensor *norm2_gain, *norm2_bias;
    ga_tensor *up_weight, *up_bias;
    ga_tensor *down_weight, *down_bias;
};

struct gpt {
    int64_t channels;
    int32_t heads;
    int64_t layers;
    int checkpointing;
    ga_tensor *token_embedding;
    ga_tensor *position_embedding;
    struct block *blocks;
    ga_tensor *norm_gain, *norm_bias;
    ga_tensor **parameters; /* all of the above, in the order in which they were made */
    int64_t parameter_count;
    char prefix[32];        /* of the names of the parameters that are being made */
    uint64_t random;
};

static ga_tensor *add_parameter(struct gpt *gpt, const char *name, int32_t rank, int64_t rows,
                                int64_t columns)
{
    const int64_t shape[2] = {rows, columns};
    char full_name[64];
    ga_tensor *tensor;

    snprintf(full_name, sizeof full_name, "%s%s", gpt->prefix, name);
    check(ga_tensor_create(&tensor, GA_DEVICE_CPU, GA_FLOAT32, rank, shape));
    check(ga_tensor_set_name(tensor, full_name));
    gpt->parameters[gpt->parameter_count++] = tensor;
    return tensor;
}

static ga_tensor *add_matrix(struct gpt *gpt, const char *name, int64_t rows, int64_t columns,
                             double deviation)
{
    ga_tensor *matrix = add_parameter(gpt, name, 2, rows, columns);

    check(ga_tensor_fill_normal(matrix, 0.0, deviation, random_next(&gpt->random)));
    return matrix;
}

static ga_tensor *add_vector(struct gpt *gpt, const char *name, int64_t length, double value)
{
    ga_tensor *vector = add_parameter(gpt, name, 1, length, 1);

    check(ga_tensor_fill(vector, value));
    return vector;
}

static void add_block(struct gpt *gpt, int64_t index)
{
    const int64_t c = gpt->channels;
    /* As in GPT-2: the sum of all the branches that are added to the residual stream keeps its size. */
    const double residual_deviation = INIT_STANDARD_DEVIATION / sqrt(2.0 * (double)gpt->layers);
    struct block *block = &gpt->blocks[index];

    snprintf(gpt->prefix, sizeof gpt->prefix, "h.%lld.", (long long)index);
    block->channels = c;
    block->heads = gpt->heads;
    block->norm1_gain = add_vector(gpt, "ln_1.weight", c, 1.0);
    block->norm1_bias = add_vector(gpt, "ln_1.bias", c, 0.0);
    block->qkv_weight = add_matrix(gpt, "attn.c_attn.weight", 3 * c, c, INIT_STANDARD_DEVIATION);
    block->qkv_bias = add_vector(gpt, "attn.c_attn.bias", 3 * c, 0.0);
    block->projection_weight = add_matrix(gpt, "attn.c_proj.weight", c, c, residual_deviation);
    block->projection_bias = add_vector(gpt, "attn.c_proj.bias", c, 0.0);
    block->norm2_gain = add_vector(gpt, "ln_2.weight", c, 1.0);
    block->norm2_bias = add_vector(gpt, "ln_2.bias", c, 0.0);
    block->up_weight = add_matrix(gpt, "mlp.c_fc.weight", 4 * c, c, INIT_STANDARD_DEVIATION);
    block->up_bias = add_vector(gpt, "mlp.c_fc.bias", 4 * c, 0.0);
    block->down_weight = add_matrix(gpt, "mlp.c_proj.weight", c, 4 * c, residual_deviation);
    block->down_bias = add_vector(gpt, "mlp.c_proj.bias", c, 0.0);
}

static struct gpt gpt_create(long long layers, long long channels, long long heads, long long context,
                             int checkpointing, uint64_t random)
{
    struct gpt gpt = {0};
    int64_t i;

    gpt.channels = channels;
    gpt.heads = (int32_t)heads;
    gpt.layers = layers;
    gpt.checkpointing = checkpointing;
    gpt.random = random;
    gpt.blocks = allocate(layers, sizeof *gpt.blocks);
    gpt.parameters = allocate(PARAMETERS_PER_BLOCK * layers + PARAMETERS_OUTSIDE_BLOCKS,
                              sizeof *gpt.parameters);
    gpt.token_embedding = add_matrix(&gpt, "wte.weight", VOCABULARY, channels, INIT_STANDARD_DEVIATION);
    gpt.position_embedding = add_matrix(&gpt, "wpe.weight", context, channels, INIT_STANDARD_DEVIATION);
    for (i = 0; i < layers; i++)
        add_block(&gpt, i);
    gpt.prefix[0] = '\0';
    gpt.norm_gain = add_vector(&gpt, "ln_f.weight", channels, 1.0);
    gpt.norm_bias = add_vector(&gpt, "ln_f.bias", channels, 0.0);
    return gpt;
}

static void gpt_free(struct gpt *gpt)
{
    int64_t i;

    for (i = 0; i < gpt->parameter_count; i++)
        ga_tensor_free(gpt->parameters[i]);
    free(gpt->parameters);
    free(gpt->blocks);
}

/* The scope frees what only this block needed; where a backward pass will need it, the graph keeps it. */
static ga_tensor *block_forward(const struct block *block, ga_tensor *x)
{
    const int64_t c = block->channels;
    ga_scope *scope;
    ga_tensor *h, *qkv, *q, *k, *v;

    check(ga_scope_open(&scope));
    check(ga_layer_norm(&h, x, block->norm1_gain, block->norm1_bias, LAYER_NORM_EPS));
    check(ga_linear(&qkv, h, block->qkv_weight, block->qkv_bias));
    check(ga_slice(&q, qkv, -1, 0, c));
    check(ga_slice(&k, qkv, -1, c, 2 * c));
    check(ga_slice(&v, qkv, -1, 2 * c, 3 * c));
    check(ga_causal_attention(&h, q, k, v, block->heads));
    check(ga_linear(&h, h, block->projection_weight, block->projection_bias));
    check(ga_add(&x, x, h));

    check(ga_layer_norm(&h, x, block->norm2_gain, block->norm2_bias, LAYER_NORM_EPS));
    check(ga_linear(&h, h, block->up_weight, block->up_bias));
    check(ga_gelu(&h, h, GA_GELU_TANH));
    check(ga_linear(&h, h, block->down_weight, block->down_bias));
    check(ga_add(&x, x, h));
    check(ga_scope_close(scope, &x, 1));
    return x;
}

/* For ga_checkpoint: block_forward with the block as user. */
static ga_status block_run(ga_tensor **out, ga_tensor *const *inputs, int64_t count, void *user)
{
    (void)count;
    *out = block_forward(user, inputs[0]);
    return GA_OK;
}

/* tokens [windows, context] gives [windows, context, channels]: what the head turns into logits. */
static ga_tensor *gpt_hidden(const struct gpt *gpt, const ga_tensor *tokens)
{
    ga_tensor *x;
    int64_t i;

    check(ga_embedding(&x, gpt->token_embedding, tokens));
    check(ga_add(&x, x, gpt->position_embedding));
    for (i = 0; i < gpt->layers; i++) {
        if (gpt->checkpointing)
            check(ga_checkpoint(&x, &x, 1, block_run, &gpt->blocks[i], NULL));
        else
            x = block_forward(&gpt->blocks[i], x);
    }
    check(ga_layer_norm(&x, x, gpt->norm_gain, gpt->norm_bias, LAYER_NORM_EPS));
    return x;
}

/* In float32, whatever the head computes in. */
static ga_tensor *gpt_logits(const struct gpt *gpt, const ga_tensor *hidden)
{
    ga_tensor *logits;

    check(ga_linear(&logits, hidden, gpt->token_embedding, NULL));
    check(ga_cast(&logits, logits, GA_FLOAT32));
    return logits;
}

static ga_tensor *gpt_loss(const struct gpt *gpt, const ga_tensor *tokens, const ga_tensor *targets)
{
    ga_tensor *loss;

    check(ga_linear_cross_entropy(&loss, gpt_hidden(gpt, tokens), gpt->token_embedding, targets,
                                  GA_NO_IGNORE_INDEX, GA_REDUCTION_SUM));
    return loss;
}

#endif /* GPT_H */
