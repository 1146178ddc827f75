/*
 * Prints the multiply-add peak of this machine in GFLOP/s: fma_peak f32|bf16 THREADS
 *
 * Every thread keeps more independent chains in registers than the latency of an instruction needs, so that
 * nothing but the arithmetic units is measured. bf16 is the dot product of pairs that is added to an f32.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHAINS 16
#define ROUNDS 20000
#define SECONDS 0.25

#if defined(__AVX512F__)
typedef __m512 vector;
#define LANES 16
#define SPLAT _mm512_set1_ps
#define FMA(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#elif defined(__AVX2__) && defined(__FMA__)
typedef __m256 vector;
#define LANES 8
#define SPLAT _mm256_set1_ps
#define FMA(sum, a, b) _mm256_fmadd_ps(a, b, sum)
#else
typedef __m128 vector;
#define LANES 4
#define SPLAT _mm_set1_ps
#define FMA(sum, a, b) _mm_add_ps(_mm_mul_ps(a, b), sum)
#endif

static pthread_barrier_t start;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* The empty statement keeps the chains in registers and the compiler from seeing through them. */
#define LOOP(vector_type, step)                                      \
    for (long round = 0; round < ROUNDS; round++) {                  \
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) {  \
            sums[i] = step;                                          \
            __asm__ volatile("" : "+x"(sums[i]));                    \
        }                                                            \
    }

static void f32_rounds(vector *chains) {
    vector sums[CHAINS], a = SPLAT(1e-9f), b = SPLAT(1e-9f);
    memcpy(sums, chains, sizeof sums);
    LOOP(vector, FMA(sums[i], a, b))
    memcpy(chains, sums, sizeof sums);
}

#if defined(__AVX512BF16__)
#define HAS_BF16 1
#define BF16_FLOPS (2 * 32)
static void bf16_rounds(vector *chains) {
    vector sums[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3000), b = a;
    memcpy(sums, chains, sizeof sums);
    LOOP(vector, _mm512_dpbf16_ps(sums[i], a, b))
    memcpy(chains, sums, sizeof sums);
}
#else
/* Without a bf16 dot product, bf16 is computed as f32. */
#define HAS_BF16 0
#define BF16_FLOPS (2 * LANES)
#define bf16_rounds f32_rounds
#endif

struct work {
    pthread_t thread;
    int bf16;
    double rate;
};

static void *run(void *argument) {
    struct work *work = argument;
    vector chains[CHAINS];
    double flops = (double)ROUNDS * CHAINS * (work->bf16 ? BF16_FLOPS : 2 * LANES);
    double began, seconds;
    long passes = 0;
    memset(chains, 0, sizeof chains);
    pthread_barrier_wait(&start);
    began = now();
    do {
        if (work->bf16)
            bf16_rounds(chains);
        else
            f32_rounds(chains);
        passes++;
        seconds = now() - began;
    } while (seconds < SECONDS);
    work->rate = passes * flops / seconds;
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc == 3 ? atoi(argv[2]) : 0;
    struct work *work;
    double total = 0;
    if (threads < 1) return 2;
    work = calloc((size_t)threads, sizeof *work);
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        work[i].bf16 = strcmp(argv[1], "bf16") == 0;
        pthread_create(&work[i].thread, NULL, run, &work[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(work[i].thread, NULL);
        total += work[i].rate;
    }
    printf("{\"gflops\": %.1f, \"bf16_dot_product\": %d, \"lanes\": %d}\n", total / 1e9, HAS_BF16, LANES);
    free(work);
    return 0;
}
