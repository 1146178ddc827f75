/*
 * Prints the seconds of plain loops over float32 streams: streams ELEMENTS THREADS REPEATS [PASS ...]
 *
 * A pass is READS+UPDATES: so many streams are read, and so many updated in place. Without any it is 0+4: the memory
 * traffic of the end of a window with AdamW, where weights, gradients and two moments are each read and written once.
 * One number per repeat of all passes, after one that touches the pages.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define MOST_READS 2
#define MOST_UPDATES 4
#define MOST_PASSES 8
#define VECTOR 16

typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4)));

static float *streams[MOST_READS + MOST_UPDATES];
static struct { int reads, updates; } passes[MOST_PASSES] = {{0, 4}};
static int count_of_passes = 1;
static size_t elements;
static int threads;
static pthread_barrier_t gate;
static volatile float sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static inline __attribute__((always_inline)) void loop(int reads, int updates, size_t first, size_t count) {
    vector sum = {0};
    float *s[MOST_READS + MOST_UPDATES];
    for (int k = 0; k < MOST_READS + MOST_UPDATES; k++) s[k] = streams[k] + first;
    for (size_t i = 0; i + VECTOR <= count; i += VECTOR) {
#pragma GCC unroll 8
        for (int k = 0; k < reads; k++) sum += *(const vector *)(s[k] + i);
#pragma GCC unroll 8
        for (int k = 0; k < updates; k++) {
            vector *x = (vector *)(s[MOST_READS + k] + i);
            *x = *x * 0.999f + 0.001f;
        }
    }
    sink = sum[0];
}

/* The counts are constant in each loop, so that it is as plain as it can be. */
#define UPDATES(reads)                                      \
    switch (updates) {                                      \
    case 0: loop(reads, 0, first, count); break;            \
    case 1: loop(reads, 1, first, count); break;            \
    case 2: loop(reads, 2, first, count); break;            \
    case 3: loop(reads, 3, first, count); break;            \
    default: loop(reads, 4, first, count);                  \
    }

static void run_loop(int reads, int updates, size_t first, size_t count) {
    switch (reads) {
    case 0: UPDATES(0); break;
    case 1: UPDATES(1); break;
    default: UPDATES(2);
    }
}

static void pass(size_t index) {
    size_t share = (elements / (size_t)threads) & ~(size_t)(VECTOR - 1);
    size_t first = index * share;
    size_t count = index + 1 == (size_t)threads ? elements - first : share;
    for (int p = 0; p < count_of_passes; p++) {
        pthread_barrier_wait(&gate);
        run_loop(passes[p].reads, passes[p].updates, first, count);
        pthread_barrier_wait(&gate);
    }
}

static int repeats;

static void *run(void *argument) {
    for (int i = 0; i <= repeats; i++) pass((size_t)argument);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t *others;
    if (argc < 4 || argc > 4 + MOST_PASSES) return 2;
    elements = strtoull(argv[1], NULL, 10);
    threads = atoi(argv[2]);
    repeats = atoi(argv[3]);
    if (elements < 1 || threads < 1 || repeats < 1) return 2;
    if (argc > 4) count_of_passes = argc - 4;
    for (int p = 0; p < argc - 4; p++)
        if (sscanf(argv[4 + p], "%d+%d", &passes[p].reads, &passes[p].updates) != 2 || passes[p].reads < 0 ||
            passes[p].reads > MOST_READS || passes[p].updates < 0 || passes[p].updates > MOST_UPDATES)
            return 2;
    for (int i = 0; i < MOST_READS + MOST_UPDATES; i++) {
        size_t bytes = elements * sizeof(float);
        streams[i] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (streams[i] == MAP_FAILED) return 1;
        madvise(streams[i], bytes, MADV_HUGEPAGE);
        /* Pages that are only read would all be the one page of zeros. */
        for (size_t k = 0; k < elements; k++) streams[i][k] = 1;
    }
    pthread_barrier_init(&gate, NULL, (unsigned)threads);
    others = calloc((size_t)threads, sizeof *others);
    for (int i = 1; i < threads; i++) pthread_create(&others[i], NULL, run, (void *)(size_t)i);
    printf("[");
    for (int i = 0; i <= repeats; i++) {
        double began = now();
        pass(0);
        if (i > 0) printf("%s%.6f", i > 1 ? ", " : "", now() - began);
    }
    printf("]\n");
    for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
    free(others);
    return 0;
}
