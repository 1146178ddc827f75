/*
 * Instructions that Swift cannot say. For the kernels alone, which import them as functions.
 */
#ifndef SHIMS_INSTRUCTIONS_H
#define SHIMS_INSTRUCTIONS_H

#include <stdint.h>

/* Begins to bring a line of memory, which need not exist, into the second-level cache: rows that lie far apart would
 * drive each other out of the first. */
static inline __attribute__((always_inline)) void shims_prefetch(const void *_Nonnull address) {
    __builtin_prefetch(address, 0, 2);
}

/* The same into the first-level cache. */
static inline __attribute__((always_inline)) void shims_prefetch_near(const void *_Nonnull address) {
    __builtin_prefetch(address, 0, 3);
}

#if defined(__clang__)
typedef float shims_floats __attribute__((ext_vector_type(16)));
typedef uint32_t shims_bits __attribute__((ext_vector_type(16)));

/* Stores over a whole line of memory, past the caches and without reading it first. shims_stream_end before other
 * threads may read it. */
static inline __attribute__((always_inline)) void shims_stream(float *_Nonnull line, shims_floats x) {
    __builtin_nontemporal_store(x, (shims_floats *)line);
}

static inline __attribute__((always_inline)) void shims_stream_end(void) { __builtin_ia32_sfence(); }

/* The first `count` < 16 floats at `from`, and 0 in the other lanes, whose memory is not touched. */
static inline __attribute__((always_inline)) shims_floats shims_load_part(const float *_Nonnull from, int64_t count) {
#if defined(__AVX512F__)
    typedef float floats __attribute__((vector_size(64)));
    return (shims_floats)__builtin_ia32_loadups512_mask(from, (floats){0}, (unsigned short)((1u << count) - 1));
#elif defined(__AVX2__)
    typedef float floats __attribute__((vector_size(32)));
    typedef int ints __attribute__((vector_size(32)));
    const ints lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    shims_floats out;
    out.lo = __builtin_ia32_maskloadps256((const floats *)from, lanes < (int)count);
    out.hi = __builtin_ia32_maskloadps256((const floats *)(from + 8), lanes < (int)count - 8);
    return out;
#else
    shims_floats out = 0;
    __builtin_memcpy(&out, from, (uint64_t)count * sizeof(float));
    return out;
#endif
}

/* Stores the first `count` < 16 lanes, and touches no memory past them. */
static inline __attribute__((always_inline)) void shims_store_part(float *_Nonnull to, shims_floats x, int64_t count) {
#if defined(__AVX512F__)
    typedef float floats __attribute__((vector_size(64)));
    __builtin_ia32_storeups512_mask(to, (floats)x, (unsigned short)((1u << count) - 1));
#else
    __builtin_memcpy(to, &x, (uint64_t)count * sizeof(float));
#endif
}

/* The larger of |a| and |b|, which are no NaN. */
static inline __attribute__((always_inline)) shims_floats shims_larger_magnitude(shims_floats a, shims_floats b) {
#if defined(__AVX512DQ__)
    typedef float floats __attribute__((vector_size(64)));
    return (shims_floats)__builtin_ia32_rangeps512_mask((floats)a, (floats)b, 11, (floats)a, -1, 4);
#else
    shims_bits x = (shims_bits)a & 0x7fffffff, y = (shims_bits)b & 0x7fffffff;
    return (shims_floats)(x > y ? x : y);
#endif
}
#endif

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
