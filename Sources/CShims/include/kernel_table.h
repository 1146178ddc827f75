/*
 * The border between the kernels and the library: one table of functions per instruction set.
 *
 * A kernel loops over raw memory: no allocation, no error, no object, no thread. Pointers may be unaligned
 * and sizes may be zero. Outputs do not overlap inputs unless a function says that they may.
 *   accumulate: 0 stores the result over out; otherwise out is loaded first and the result added to it.
 *   rows x cols arrays are contiguous unless a leading dimension (ld..., in elements) is given.
 * Results depend on the arguments alone, element by element or chain by chain as stated, and never on how a
 * caller cuts a loop into calls, except where a function says what its unit is.
 */
#ifndef SHIMS_KERNEL_TABLE_H
#define SHIMS_KERNEL_TABLE_H

#include <stdint.h>

/* Which of two operations, and what of it, an elementwise kernel computes. */
typedef enum shims_binary { SHIMS_ADD, SHIMS_SUBTRACT, SHIMS_MULTIPLY, SHIMS_DIVIDE } shims_binary;
typedef enum shims_unary { SHIMS_RELU, SHIMS_GELU_TANH, SHIMS_GELU_ERF } shims_unary;

/* Storage formats of a floating number. */
typedef enum shims_format { SHIMS_F32, SHIMS_BF16, SHIMS_F16 } shims_format;

/* g is scaled by gradient_scale (1/weight times the clip factor) before anything else. */
typedef struct shims_sgd {
    float gradient_scale, learning_rate, momentum, weight_decay;
    float rate; /* what the gradient with its decay is multiplied by: 1, or LARS's rate of the parameter */
    int32_t nesterov, first_update; /* first_update: the buffer starts as the gradient, as in PyTorch */
} shims_sgd;

/* step_size = learning_rate / (1 - beta1^t); denominator = sqrt(v) / sqrt(1 - beta2^t) + eps. */
typedef struct shims_adam {
    float gradient_scale, beta2, eps, step_size;
    float gradient_step_size; /* of nadam alone */
    float inverse_sqrt_correction2;
    float weight1, weight2; /* 1 - beta1 and 1 - beta2, which float32 would round to few digits */
    float decoupled_decay; /* parameters are multiplied by this first: 1 - learning_rate * weight_decay, or 1 */
    float l2_decay;        /* times the parameter is added to the gradient */
} shims_adam;

typedef struct shims_moments {
    float gradient_scale, beta2;
    float weight1, weight2; /* 1 - beta1 and 1 - beta2 */
    int32_t is_first;       /* whether the moments move on first: once per update */
} shims_moments;

/* How sums in bfloat16 are rounded: to the nearest with ties to even, up or down at random with no error on average, or to
 * the nearest with what that has added too much kept beside the sum and taken from the next addition (Kahan). */
typedef enum shims_rounding { SHIMS_NEAREST, SHIMS_STOCHASTIC, SHIMS_COMPENSATED } shims_rounding;

typedef struct shims_bf16_addition {
    shims_rounding rounding;
    int32_t accumulate; /* 0: the sums are 0 before, whatever they hold */
    /* The random bits of element i are those of (key, ordinal, the lower half of first + i). */
    uint32_t key, ordinal;
    int64_t first;
} shims_bf16_addition;

/* Element (i, j) is at address[i * row + j * column], and one of the two steps is 1. */
typedef struct shims_matrix {
    const void *_Nonnull address;
    int64_t row, column;
    shims_format format;
} shims_matrix;

/* c [m, n] (+)= a [m, k] b [k, n] (+ bias [n]). c, in any format, is contiguous along its rows; only one in F32 can be added to, and
 * then there is no bias.
 * arithmetic F32: operands are multiplied as floats. BF16: they are rounded to bfloat16, and their exact products are
 * added to float sums, of every pair along k that begins at a multiple of 2 the second before the first. F16: they are
 * rounded to float16, and multiplied as floats.
 * streams: c in F32 is stored past the caches, if it begins at a line of memory and so do its rows.
 * packed_b: null, or what pack_columns has made, in this arithmetic, of a matrix that begins with b, of packed_k elements
 * along k. n is all of its columns or a multiple of 64; k is all of packed_k or a multiple of 2. */
typedef struct shims_product {
    void *_Nonnull c;
    int64_t ldc;
    shims_format c_format;
    shims_matrix a, b;
    const float *_Nullable bias;
    int64_t m, n, k;
    int32_t accumulate;
    int32_t streams;
    shims_format arithmetic;
    const float *_Nullable packed_b;
    int64_t packed_k;
} shims_product;

/* The direction of lamb is m / correction1 / (sqrt(v / correction2) + eps) + weight_decay * p. */
typedef struct shims_lamb {
    float gradient_scale, beta2, eps;
    float weight1, weight2; /* 1 - beta1 and 1 - beta2 */
    float inverse_correction1, inverse_sqrt_correction2, weight_decay;
} shims_lamb;

/* Sums of squares. */
typedef struct shims_squares {
    double parameter, direction;
} shims_squares;

/* The update of row r and column c: gradient_scale * gradient * min(limit, row_scale * row[r] * column[c]). */
typedef struct shims_adafactor {
    float gradient_scale, row_scale, limit;
    float decoupled_decay; /* parameters are multiplied by this first */
    float step_size;
} shims_adafactor;

typedef struct shims_muon {
    float gradient_scale, weight, momentum; /* weight: 1 - momentum */
    int32_t nesterov;
} shims_muon;

typedef struct shims_lion {
    float gradient_scale, learning_rate;
    float weight1, weight2; /* 1 - beta1 and 1 - beta2 */
    float decoupled_decay;  /* parameters are multiplied by this first */
} shims_lion;

typedef struct shims_kernel_table {
    /* --- elementwise ------------------------------------------------------------------------------- */
    /* out[i] = a[i * a_step] op b[i * b_step]; a_step and b_step are 0 or 1. out may be a or b. */
    void (*_Nonnull binary)(shims_binary op, float *_Nonnull out, const float *_Nonnull a, int64_t a_step,
                            const float *_Nonnull b, int64_t b_step, int64_t n);
    /* out[i] (+)= dy[i] * d(a op b)/da, or /db if side is 1. */
    void (*_Nonnull binary_gradient)(shims_binary op, int32_t side, float *_Nonnull out,
                                     const float *_Nonnull dy, const float *_Nonnull a, int64_t a_step,
                                     const float *_Nonnull b, int64_t b_step, int64_t n, int32_t accumulate);
    /* out may be x. */
    void (*_Nonnull unary)(shims_unary op, float *_Nonnull out, const float *_Nonnull x, int64_t n);
    /* out[i] (+)= dy[i] * op'(x[i]) */
    void (*_Nonnull unary_gradient)(shims_unary op, float *_Nonnull out, const float *_Nonnull dy,
                                    const float *_Nonnull x, int64_t n, int32_t accumulate);
    /* out[i] (+)= scale * x[i], with x in any storage format. scale 1 changes no bit. out may be x in F32. */
    void (*_Nonnull add_scaled)(float *_Nonnull out, const void *_Nonnull x, shims_format format, float scale,
                                int64_t n, int32_t accumulate);
    /* The same without the addition, for an out that no cache has room for: it is stored past them. */
    void (*_Nonnull stream_scaled)(float *_Nonnull out, const void *_Nonnull x, shims_format format, float scale,
                                   int64_t n);
    /* Keeps x, a gradient in a half format, in the memory of a sum to come, out: that of place 0 or 1. Each 32 elements of out
     * have a line of memory for each of the two; the elements after the last 32 are added at once. */
    void (*_Nonnull hold_half)(float *_Nonnull out, int32_t place, const uint16_t *_Nonnull x, shims_format format,
                               float scale, int64_t n, int32_t past_caches);
    /* Makes out the sum of the 1 or 2 gradients that it holds, each times its scale, and of scale * x where there is one:
     * to the same bits as if add_scaled had added one after another. */
    void (*_Nonnull add_held)(float *_Nonnull out, int32_t held, float scale0, float scale1,
                              const uint16_t *_Nullable x, shims_format format, float scale, int64_t n);
    void (*_Nonnull fill)(float *_Nonnull out, float value, int64_t n);
    /* Conversions: to the nearest with ties to even; a NaN stays a (quiet) NaN. */
    void (*_Nonnull to_f32)(float *_Nonnull out, const uint16_t *_Nonnull x, shims_format format, int64_t n);
    void (*_Nonnull from_f32)(uint16_t *_Nonnull out, shims_format format, const float *_Nonnull x, int64_t n);

    /* --- reductions -------------------------------------------------------------------------------- */
    /* out[c] (+)= x[0][c] + x[1][c] + ...: one chain per column, in row order, out loaded first. */
    void (*_Nonnull sum_rows)(float *_Nonnull out, const float *_Nonnull x, int64_t rows, int64_t cols,
                              int64_t ldx, int32_t accumulate);
    /* The same, and rounded[r][c], with ldx between its rows too, becomes the nearest to x[r][c] in a half format. A
     * denormal may become 0. */
    void (*_Nonnull sum_and_round_rows)(float *_Nonnull out, uint16_t *_Nonnull rounded, shims_format format,
                                        const float *_Nonnull x, int64_t rows, int64_t cols, int64_t ldx,
                                        int32_t accumulate);
    /* The sum of n consecutive numbers, in a fixed order that depends on n alone. */
    float (*_Nonnull sum)(const float *_Nonnull x, int64_t n);
    /* The sum of squares in double; NaN or infinite exactly if an x is. */
    double (*_Nonnull sum_of_squares)(const float *_Nonnull x, int64_t n);
    /* The largest magnitude of x, in any storage format: NaN where an x is. 0 if there is none. */
    float (*_Nonnull largest_magnitude)(const void *_Nonnull x, shims_format format, int64_t n);
    /* x[i] += y[i], returning the sum of squares of the results. */
    double (*_Nonnull fold_sum_of_squares)(float *_Nonnull x, const float *_Nonnull y, int64_t n);
    /* x[i] = scale * x[i] moved into -limit ... limit; squares gets the sums of squares before that move and after. */
    void (*_Nonnull clip_values)(float *_Nonnull x, float scale, float limit, double *_Nonnull squares, int64_t n);
    /* The sum of (a[i] - b[i])^2 in a fixed order that depends on n alone, in double. */
    double (*_Nonnull squared_error)(const float *_Nonnull a, const float *_Nonnull b, int64_t n);
    /* out[i] (+)= scale * (a[i] - b[i]) */
    void (*_Nonnull scaled_difference)(float *_Nonnull out, const float *_Nonnull a, const float *_Nonnull b,
                                       float scale, int64_t n, int32_t accumulate);
    /* out[r] = sum over c of a[r][c] * b[r][c] */
    void (*_Nonnull dot_rows)(float *_Nonnull out, const float *_Nonnull a, int64_t lda,
                              const float *_Nonnull b, int64_t ldb, int64_t rows, int64_t cols);

    /* --- rows: every row is computed alone ------------------------------------------------------------ */
    /* out = (x - mean) * rstd * weight + bias; weight and bias may be null. mean and rstd [rows] are written. */
    void (*_Nonnull layer_norm)(float *_Nonnull out, float *_Nonnull mean, float *_Nonnull rstd,
                                const float *_Nonnull x, const float *_Nullable weight,
                                const float *_Nullable bias, int64_t rows, int64_t cols, float eps);
    /* The gradient of x; weight may be null. */
    void (*_Nonnull layer_norm_gradient)(float *_Nonnull dx, const float *_Nonnull dy, const float *_Nonnull x,
                                         const float *_Nonnull mean, const float *_Nonnull rstd,
                                         const float *_Nullable weight, int64_t rows, int64_t cols,
                                         int32_t accumulate);
    /* dweight[c] (+)= sum over r of dy[r][c] * (x[r][c] - mean[r]) * rstd[r]: one chain per column in row
     * order, for the columns first_col ..< last_col of rows that are cols long. */
    void (*_Nonnull layer_norm_weight_gradient)(float *_Nonnull dweight, const float *_Nonnull dy,
                                                const float *_Nonnull x, const float *_Nonnull mean,
                                                const float *_Nonnull rstd, int64_t rows, int64_t cols,
                                                int64_t first_col, int64_t last_col, int32_t accumulate);
    /* out may be x. */
    void (*_Nonnull softmax)(float *_Nonnull out, const float *_Nonnull x, int64_t rows, int64_t cols);
    /* dx (+)= y * (dy - sum(dy * y)) */
    void (*_Nonnull softmax_gradient)(float *_Nonnull dx, const float *_Nonnull dy, const float *_Nonnull y,
                                      int64_t rows, int64_t cols, int32_t accumulate);
    /* maximum[r] = the largest x[r][c], and log_sum[r] = log of the sum over c of exp(x[r][c] - maximum[r]): kept
     * apart, as their sum would lose the digits of small differences between large numbers. */
    void (*_Nonnull log_sum_exp)(float *_Nonnull maximum, float *_Nonnull log_sum, const float *_Nonnull x,
                                 int64_t rows, int64_t cols);
    /* dx[r][c] (+)= scale * (exp(x[r][c] - maximum[r] - log_sum[r]) - (c == target[r])); a negative target: 0.
     * dx may be x. */
    void (*_Nonnull cross_entropy_gradient)(float *_Nonnull dx, const float *_Nonnull x,
                                            const float *_Nonnull maximum, const float *_Nonnull log_sum,
                                            const int64_t *_Nonnull targets, float scale, int64_t rows,
                                            int64_t cols, int32_t accumulate);

    /* --- causal attention, one block of rows of one head ------------------------------------------------ */
    /* In place: row r of s [rows, cols, ld] holds raw scores; columns up to first_row + r become
     * exp(scale * s - log_sum_exp), with log_sum_exp[r] written; the columns after it become 0. */
    void (*_Nonnull attention_softmax)(float *_Nonnull s, float *_Nonnull log_sum_exp, int64_t rows, int64_t cols,
                                       int64_t ld, int64_t first_row, float scale);
    /* In place: raw scores become probabilities from the saved log_sum_exp, and dp (gradient of the
     * probabilities) becomes the gradient of the raw scores: scale * p * (dp - delta[r]). */
    void (*_Nonnull attention_softmax_gradient)(float *_Nonnull s, float *_Nonnull dp,
                                                const float *_Nonnull log_sum_exp, const float *_Nonnull delta,
                                                int64_t rows, int64_t cols, int64_t ld, int64_t first_row,
                                                float scale);

    /* --- matrix products ---------------------------------------------------------------------------------- */
    /* One chain of (fused, where the instruction set has it) multiply-adds per element of c, in order of k, c or the
     * bias loaded first. So an element's bits do not depend on m, n or how a product over k is cut into calls that
     * accumulate; with arithmetic in pairs, at multiples of 2. scratch holds as many floats as the second says, for the a that is
     * given, or for any. */
    void (*_Nonnull matrix_product)(const shims_product *_Nonnull product, float *_Nonnull scratch);
    int64_t (*_Nonnull matrix_product_scratch)(int64_t m, int64_t n, int64_t k, shims_format c_format,
                                               shims_format arithmetic, const shims_matrix *_Nullable a);
    /* What products of this arithmetic read of b [k, n]: as many floats as the second says. */
    void (*_Nonnull pack_columns)(float *_Nonnull packed, const shims_matrix *_Nonnull b, int64_t k, int64_t n,
                                  shims_format arithmetic);
    int64_t (*_Nonnull packed_columns)(int64_t k, int64_t n, shims_format arithmetic);

    /* --- optimizers: one pass over n elements --------------------------------------------------------------- */
    /* buffer may be null where momentum is 0. */
    void (*_Nonnull sgd)(float *_Nonnull parameter, const float *_Nonnull gradient, float *_Nullable buffer,
                         const shims_sgd *_Nonnull options, int64_t n);
    void (*_Nonnull adam)(float *_Nonnull parameter, const float *_Nonnull gradient, float *_Nonnull m,
                          float *_Nonnull v, const shims_adam *_Nonnull options, int64_t n);
    /* The same with a step of step_size along m and gradient_step_size along the gradient, over that denominator. */
    void (*_Nonnull nadam)(float *_Nonnull parameter, const float *_Nonnull gradient, float *_Nonnull m,
                           float *_Nonnull v, const shims_adam *_Nonnull options, int64_t n);
    /* The same with a step of step_size along m alone. */
    void (*_Nonnull adam_mean)(float *_Nonnull parameter, const float *_Nonnull gradient, float *_Nonnull m,
                               float *_Nonnull v, const shims_adam *_Nonnull options, int64_t n);
    /* adam with moments of one byte: n elements from the start of a block of 256 on, the blocks' largest magnitudes in
     * m_largest and, of the root of the second moment, root_largest. */
    void (*_Nonnull adamw8bit)(float *_Nonnull parameter, const float *_Nonnull gradient, uint8_t *_Nonnull m,
                               float *_Nonnull m_largest, uint8_t *_Nonnull root, float *_Nonnull root_largest,
                               const shims_adam *_Nonnull options, int64_t n);
    /* The moments of adam take in a gradient that is one of several in an update. */
    void (*_Nonnull adam_take_in)(const float *_Nonnull gradient, float *_Nonnull m, float *_Nonnull v,
                                  const shims_moments *_Nonnull options, int64_t n);
    /* The step of adam with moments that have taken in all. */
    void (*_Nonnull adam_along_moments)(float *_Nonnull parameter, const float *_Nonnull m, const float *_Nonnull v,
                                        const shims_adam *_Nonnull options, int64_t n);
    void (*_Nonnull lion)(float *_Nonnull parameter, const float *_Nonnull gradient, float *_Nonnull m,
                          const shims_lion *_Nonnull options, int64_t n);
    /* Updates m and v as adam does, and sums up the squares of the parameter and of the direction. */
    void (*_Nonnull lamb_moments)(const float *_Nonnull parameter, const float *_Nonnull gradient,
                                  float *_Nonnull m, float *_Nonnull v, const shims_lamb *_Nonnull options,
                                  int64_t n, shims_squares *_Nonnull squares);
    /* The parameter loses step times the direction. */
    void (*_Nonnull lamb_step)(float *_Nonnull parameter, const float *_Nonnull m, const float *_Nonnull v,
                               const shims_lamb *_Nonnull options, float step, int64_t n);

    /* --- adafactor: blocks of rows x cols, with ld elements from one row to the next -------------------------- */
    /* The sums of (scale * gradient)^2 over each row and over each column. */
    void (*_Nonnull adafactor_sums)(float *_Nonnull row_sums, float *_Nonnull column_sums,
                                    const float *_Nonnull gradient, float scale, int64_t rows, int64_t cols,
                                    int64_t ld);
    /* variance += weight * (sums * inverse_count - variance), and sums become 1 / sqrt(variance). */
    void (*_Nonnull adafactor_factors)(float *_Nonnull variance, float *_Nonnull sums, float weight,
                                       float inverse_count, int64_t n);
    /* The sum of squares of the update. */
    double (*_Nonnull adafactor_squares)(const float *_Nonnull gradient, const float *_Nonnull row_factors,
                                         const float *_Nonnull column_factors,
                                         const shims_adafactor *_Nonnull options, int64_t rows, int64_t cols,
                                         int64_t ld);
    /* parameter = decoupled_decay * parameter - step_size * update */
    void (*_Nonnull adafactor_step)(float *_Nonnull parameter, const float *_Nonnull gradient,
                                    const float *_Nonnull row_factors, const float *_Nonnull column_factors,
                                    const shims_adafactor *_Nonnull options, int64_t rows, int64_t cols,
                                    int64_t ld);

    /* --- muon: n elements ------------------------------------------------------------------------------------ */
    /* buffer += weight * (scale * gradient - buffer); direction becomes that or, with nesterov, scale * gradient
     * moved towards it by momentum. Returns the sum of squares of direction. */
    double (*_Nonnull muon_momentum)(float *_Nonnull direction, const float *_Nonnull gradient,
                                     float *_Nonnull buffer, const shims_muon *_Nonnull options, int64_t n);
    /* parameter = decay * parameter - step * direction */
    void (*_Nonnull muon_step)(float *_Nonnull parameter, const float *_Nonnull direction, float decay,
                               float step, int64_t n);

    /* --- averages of weights: n elements ----------------------------------------------------------------------- */
    /* average goes the share of the way to x, of which keep is the rest; exactly to x where it is there, or share is 1. */
    void (*_Nonnull move_average)(float *_Nonnull average, const float *_Nonnull x, float share, float keep, int64_t n);
    void (*_Nonnull exchange)(float *_Nonnull a, float *_Nonnull b, int64_t n);

    /* --- sums in bfloat16: n elements; counts are added to --------------------------------------------------------- */
    /* sum[i] += x[i]; compensation is what to take from the sums, or null but for SHIMS_COMPENSATED. counts gets how many x
     * were not 0, and how many of these have changed neither. */
    void (*_Nonnull add_to_bf16)(uint16_t *_Nonnull sum, uint16_t *_Nullable compensation, const float *_Nonnull x,
                                 const shims_bf16_addition *_Nonnull addition, int64_t n, int64_t *_Nonnull counts);
    /* out[i] = sum[i] - compensation[i] */
    void (*_Nonnull from_bf16_sums)(float *_Nonnull out, const uint16_t *_Nonnull sum,
                                    const uint16_t *_Nullable compensation, int64_t n);
    /* counts gets how many x are not 0, and how many of these are 0 in the format, of two bytes. */
    void (*_Nonnull count_flushed)(const float *_Nonnull x, shims_format format, int64_t n, int64_t *_Nonnull counts);
} shims_kernel_table;

#endif
