/*
 * Prints the seconds of a plain in-place update of float32 streams: streams ELEMENTS THREADS REPEATS [STREAMS]
 *
 * Four unless STREAMS says otherwise, 2 to 6: the memory traffic of the end of a window with AdamW, where weights,
 * gradients and two moments are each read and written once. One number per repeat, after one that touches the pages.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define MOST 6

static float *streams[MOST];
static int count_of_streams = 4;
static size_t elements;
static int threads;
static pthread_barrier_t gate;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

#define UPDATE(x) x[i] = x[i] * 0.999f + 0.001f

static void update2(float *restrict a, float *restrict b, size_t count) {
    for (size_t i = 0; i < count; i++) { UPDATE(a); UPDATE(b); }
}

static void update3(float *restrict a, float *restrict b, float *restrict c, size_t count) {
    for (size_t i = 0; i < count; i++) { UPDATE(a); UPDATE(b); UPDATE(c); }
}

static void update4(float *restrict a, float *restrict b, float *restrict c, float *restrict d, size_t count) {
    for (size_t i = 0; i < count; i++) { UPDATE(a); UPDATE(b); UPDATE(c); UPDATE(d); }
}

static void update5(float *restrict a, float *restrict b, float *restrict c, float *restrict d, float *restrict e,
                    size_t count) {
    for (size_t i = 0; i < count; i++) { UPDATE(a); UPDATE(b); UPDATE(c); UPDATE(d); UPDATE(e); }
}

static void update6(float *restrict a, float *restrict b, float *restrict c, float *restrict d, float *restrict e,
                    float *restrict f, size_t count) {
    for (size_t i = 0; i < count; i++) { UPDATE(a); UPDATE(b); UPDATE(c); UPDATE(d); UPDATE(e); UPDATE(f); }
}

static void update(size_t first, size_t count) {
    float *s[MOST] = {0};
    for (int i = 0; i < count_of_streams; i++) s[i] = streams[i] + first;
    switch (count_of_streams) {
    case 2: update2(s[0], s[1], count); break;
    case 3: update3(s[0], s[1], s[2], count); break;
    case 4: update4(s[0], s[1], s[2], s[3], count); break;
    case 5: update5(s[0], s[1], s[2], s[3], s[4], count); break;
    default: update6(s[0], s[1], s[2], s[3], s[4], s[5], count);
    }
}

static void pass(size_t index) {
    size_t share = (elements / (size_t)threads) & ~(size_t)15;
    size_t first = index * share;
    size_t count = index + 1 == (size_t)threads ? elements - first : share;
    pthread_barrier_wait(&gate);
    update(first, count);
    pthread_barrier_wait(&gate);
}

static int repeats;

static void *run(void *argument) {
    for (int i = 0; i <= repeats; i++) pass((size_t)argument);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t *others;
    if (argc != 4 && argc != 5) return 2;
    elements = strtoull(argv[1], NULL, 10);
    threads = atoi(argv[2]);
    repeats = atoi(argv[3]);
    if (argc == 5) count_of_streams = atoi(argv[4]);
    if (elements < 1 || threads < 1 || repeats < 1 || count_of_streams < 2 || count_of_streams > MOST) return 2;
    for (int i = 0; i < count_of_streams; i++) {
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
