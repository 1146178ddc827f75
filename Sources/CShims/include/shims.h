/*
 * What Swift cannot say: thread-local storage, the floating-point mode, CPUID, and oneDNN behind one call.
 */
#ifndef SHIMS_H
#define SHIMS_H

#include <stdint.h>

/* ------ errors ----------------------------------------------------------------------------------------- */

/* Copies a sentence into this thread's error text, cut to its capacity. */
void shims_set_error(const char *_Nonnull sentence);
const char *_Nonnull shims_last_error(void);

/* ------ threads ---------------------------------------------------------------------------------------- */

/* Per-thread pointers, null at first. */
enum { SHIMS_SLOT_SCOPE, SHIMS_SLOT_RECORDING_OFF, SHIMS_SLOT_TRASH, SHIMS_SLOT_IN_TILE, SHIMS_SLOT_COUNT };
void *_Nullable shims_thread_slot(int32_t slot);
void shims_set_thread_slot(int32_t slot, void *_Nullable value);

/* CPUs in the affinity mask of this process, at least 1. */
int32_t shims_available_cpus(void);
void shims_pause(void);

/* ------ compute mode ------------------------------------------------------------------------------------ */

/*
 * What a kernel runs under: default rounding, denormals flushed, exceptions masked, and no OpenMP team. Enter
 * returns what leave needs to bring the thread's own mode back.
 */
typedef struct shims_mode {
    uint32_t mxcsr;
    int32_t omp_threads;
} shims_mode;
shims_mode shims_enter_compute(void);
void shims_leave_compute(shims_mode mode);

/* 0 baseline, 1 AVX2 (x86-64-v3), 2 AVX-512 (x86-64-v4). */
int32_t shims_cpu_level(void);

/* ------ matrix products by oneDNN ------------------------------------------------------------------------ */

/* Keeps oneDNN within an instruction set: a level of shims_cpu_level. 0 if it is in use already and too wide. */
int32_t shims_gemm_limit(int32_t level);

/*
 * c [m, n] (+)= a [m, k] b [k, n] (+ bias [n]), all float32, on the calling thread alone. A transposed operand
 * lies in memory as [k, m] or [n, k]. Leading dimensions are in elements.
 */
typedef struct shims_gemm_shape {
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    int8_t transpose_a, transpose_b, accumulate, has_bias;
    int32_t reserved; /* 0: the shape is compared byte by byte */
} shims_gemm_shape;

#define SHIMS_GEMM_OK 0
#define SHIMS_GEMM_OUT_OF_MEMORY 1
#define SHIMS_GEMM_FAILED 2
int32_t shims_gemm(const shims_gemm_shape *_Nonnull shape, const float *_Nonnull a, const float *_Nonnull b,
                   float *_Nonnull c, const float *_Nullable bias);

#endif
