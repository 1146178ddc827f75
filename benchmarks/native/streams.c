/*
 * Prints the seconds of a plain in-place update of four float32 streams: streams ELEMENTS THREADS REPEATS
 *
 * The memory traffic of the end of a window with AdamW: weights, gradients and two moments are each read and
 * written once. One number per repeat, after one that touches the pages.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static float *streams[4];
static size_t elements;
static int threads;
static pthread_barrier_t gate;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void update(float *restrict a, float *restrict b, float *restrict c, float *restrict d, size_t count) {
    for (size_t i = 0; i < count; i++) {
        a[i] = a[i] * 0.999f + 0.001f;
        b[i] = b[i] * 0.999f + 0.001f;
        c[i] = c[i] * 0.999f + 0.001f;
        d[i] = d[i] * 0.999f + 0.001f;
    }
}

static void pass(size_t index) {
    size_t share = (elements / (size_t)threads) & ~(size_t)15;
    size_t first = index * share;
    size_t count = index + 1 == (size_t)threads ? elements - first : share;
    pthread_barrier_wait(&gate);
    update(streams[0] + first, streams[1] + first, streams[2] + first, streams[3] + first, count);
    pthread_barrier_wait(&gate);
}

static int repeats;

static void *run(void *argument) {
    for (int i = 0; i <= repeats; i++) pass((size_t)argument);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t *others;
    if (argc != 4) return 2;
    elements = strtoull(argv[1], NULL, 10);
    threads = atoi(argv[2]);
    repeats = atoi(argv[3]);
    if (elements < 1 || threads < 1 || repeats < 1) return 2;
    for (int i = 0; i < 4; i++) {
        size_t bytes = elements * sizeof(float);
        streams[i] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (streams[i] == MAP_FAILED) return 1;
        madvise(streams[i], bytes, MADV_HUGEPAGE);
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
