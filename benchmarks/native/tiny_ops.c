/*
 * Prints what the library itself costs per operation: tiny_ops OPERATION CHAIN REPEATS
 *
 * A chain of operations on tensors of 1x16, whose arithmetic is next to nothing, is recorded, accumulated
 * and freed. "whole" counts everything: the call, its node, its backward and the release of its tensors;
 * "forward" is the call alone. Microseconds per operation, of every repeat.
 */
#define _POSIX_C_SOURCE 199309L
#include <gradaccum.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WIDTH 16

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void check(ga_status status) {
    if (status == GA_OK) return;
    fprintf(stderr, "%s\n", ga_last_error());
    exit(1);
}

static ga_tensor *filled(int32_t rank, const int64_t *shape, double value) {
    ga_tensor *out;
    check(ga_tensor_create(&out, GA_DEVICE_CPU, GA_FLOAT32, rank, shape));
    check(ga_tensor_fill(out, value));
    return out;
}

static ga_tensor *apply(const char *operation, ga_tensor *x, ga_tensor *other, ga_tensor *matrix) {
    ga_tensor *out = NULL;
    if (strcmp(operation, "add") == 0)
        check(ga_add(&out, x, other));
    else if (strcmp(operation, "multiply") == 0)
        check(ga_multiply(&out, x, other));
    else if (strcmp(operation, "gelu") == 0)
        check(ga_gelu(&out, x, GA_GELU_TANH));
    else if (strcmp(operation, "layer_norm") == 0)
        check(ga_layer_norm(&out, x, NULL, NULL, 1e-5));
    else if (strcmp(operation, "linear") == 0)
        check(ga_linear(&out, x, matrix, NULL));
    else
        exit(2);
    return out;
}

static void print_numbers(const char *name, const double *values, int count) {
    printf("\"%s\": [", name);
    for (int i = 0; i < count; i++) printf("%s%.4f", i > 0 ? ", " : "", values[i]);
    printf("]");
}

int main(int argc, char **argv) {
    const int64_t square[2] = {WIDTH, WIDTH}, row[2] = {1, WIDTH};
    ga_tensor *root, *other, *matrix;
    ga_optimizer *optimizer;
    ga_accumulator *accumulator;
    double *forward, *whole;
    int chain = argc == 4 ? atoi(argv[2]) : 0, repeats = argc == 4 ? atoi(argv[3]) : 0;
    if (chain < 1 || repeats < 1) return 2;
    forward = malloc((size_t)repeats * sizeof *forward);
    whole = malloc((size_t)repeats * sizeof *whole);
    root = filled(2, row, 0.5);
    other = filled(2, row, 0.999);
    matrix = filled(2, square, 1.0 / WIDTH);
    check(ga_sgd_create(&optimizer, &root, 1, NULL));
    check(ga_accumulator_create(&accumulator, optimizer, NULL));
    for (int repeat = -1; repeat < repeats; repeat++) { /* the first one warms up */
        double began = now(), called;
        ga_scope *scope;
        ga_tensor *x = root, *loss;
        check(ga_scope_open(&scope));
        for (int i = 0; i < chain; i++) x = apply(argv[1], x, other, matrix);
        called = now();
        check(ga_sum(&loss, x, NULL, 0, 0));
        check(ga_accumulate(accumulator, loss, 1.0));
        check(ga_scope_close(scope, NULL, 0));
        if (repeat >= 0) {
            forward[repeat] = 1e6 * (called - began) / chain;
            whole[repeat] = 1e6 * (now() - began) / chain;
        }
        check(ga_zero(accumulator));
    }
    printf("{");
    print_numbers("forward", forward, repeats);
    printf(", ");
    print_numbers("whole", whole, repeats);
    printf("}\n");
    ga_accumulator_free(accumulator);
    ga_optimizer_free(optimizer);
    ga_tensor_free(matrix);
    ga_tensor_free(other);
    ga_tensor_free(root);
    free(whole);
    free(forward);
    return 0;
}
