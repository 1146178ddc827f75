/*
 * Instructions that Swift cannot say. For the kernels alone, which import them as functions.
 */
#ifndef SHIMS_INSTRUCTIONS_H
#define SHIMS_INSTRUCTIONS_H

/* Begins to bring a line of memory, which need not exist, into the second-level cache: rows that lie far apart would
 * drive each other out of the first. */
static inline __attribute__((always_inline)) void shims_prefetch(const void *_Nonnull address) {
    __builtin_prefetch(address, 0, 2);
}

/* The same into the first-level cache. */
static inline __attribute__((always_inline)) void shims_prefetch_near(const void *_Nonnull address) {
    __builtin_prefetch(address, 0, 3);
}

#if defined(__AVX512BF16__) && defined(__clang__)
typedef float shims_vector __attribute__((ext_vector_type(16)));

/* low and then high, rounded to 32 numbers of bfloat16. A denormal becomes 0, as the product below has it anyway. */
static inline __attribute__((always_inline)) shims_vector shims_round_pairs(shims_vector low, shims_vector high) {
    typedef float floats __attribute__((vector_size(64)));
    return (shims_vector)__builtin_ia32_cvtne2ps2bf16_512((floats)high, (floats)low);
}

/* sum[i] + a[i] b[i] with pairs of bfloat16 in a and b: the upper product first, each addition rounded. */
static inline __attribute__((always_inline)) shims_vector shims_add_dot_product(shims_vector sum, shims_vector a,
                                                                                shims_vector b) {
    typedef float floats __attribute__((vector_size(64)));
    typedef __bf16 halves __attribute__((vector_size(64)));
    return (shims_vector)__builtin_ia32_dpbf16ps_512((floats)sum, (halves)a, (halves)b);
}
#endif

#endif
