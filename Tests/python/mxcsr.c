/*
 * Calls the library in whatever floating-point mode the caller likes: rounding upwards, with denormals, with
 * every floating-point exception unmasked, which would end the process at the first rounded result. The mode
 * must be the same after each call, and the weights the same as in the default mode.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#include "gradaccum.h"

#define FEATURES 37
#define CLASSES 11
#define SAMPLES 9

static unsigned int mode; /* the control bits that the calls are made in */

static void enter(void) {
    _mm_setcsr(mode);
}

static void leave(ga_status status, const char *call) {
    unsigned int after = _mm_getcsr();

    _mm_setcsr(0x1F80);
    if ((after & 0xFFC0) != (mode & 0xFFC0)) {
        printf("%s changed the mode from %04x to %04x\n", call, mode, after);
        exit(1);
    }
    if (status != GA_OK) {
        printf("%s: %s\n", call, ga_last_error());
        exit(1);
    }
}
#define CALL(call) (enter(), leave(call, #call))

static void train(float *weights) {
    const int64_t weight_shape[2] = {CLASSES, FEATURES}, bias_shape[1] = {CLASSES};
    const int64_t x_shape[2] = {SAMPLES, FEATURES}, y_shape[1] = {SAMPLES};
    ga_accumulator_options window = GA_ACCUMULATOR_OPTIONS_INIT;
    ga_report report = GA_REPORT_INIT;
    ga_tensor *parameters[2], *x, *y;
    ga_optimizer *optimizer;
    ga_accumulator *accumulator;
    int update;

    window.max_grad_norm = 0.1;
    CALL(ga_tensor_create(&parameters[0], GA_DEVICE_CPU, GA_FLOAT32, 2, weight_shape));
    CALL(ga_tensor_create(&parameters[1], GA_DEVICE_CPU, GA_FLOAT32, 1, bias_shape));
    CALL(ga_tensor_fill_normal(parameters[0], 0.0, 0.1, 1));
    CALL(ga_adamw_create(&optimizer, parameters, 2, NULL));
    CALL(ga_accumulator_create(&accumulator, optimizer, &window));
    CALL(ga_tensor_create(&x, GA_DEVICE_CPU, GA_FLOAT32, 2, x_shape));
    CALL(ga_tensor_create(&y, GA_DEVICE_CPU, GA_INT32, 1, y_shape));
    CALL(ga_tensor_fill(y, 3.0));
    for (update = 0; update < 5; update++) {
        ga_scope *scope;
        ga_tensor *hidden, *loss;

        /* Denormal inputs, and one overflow on the way (an exponential) and many inexact results. */
        CALL(ga_tensor_fill_normal(x, 0.0, update == 2 ? 1e-39 : 10.0, 2 + (uint64_t)update));
        CALL(ga_scope_open(&scope));
        CALL(ga_linear(&hidden, x, parameters[0], parameters[1]));
        CALL(ga_gelu(&hidden, hidden, GA_GELU_ERF));
        CALL(ga_layer_norm(&hidden, hidden, NULL, NULL, 1e-5));
        CALL(ga_softmax(&hidden, hidden, -1));
        CALL(ga_cross_entropy(&loss, hidden, y, GA_NO_IGNORE_INDEX, GA_REDUCTION_SUM));
        CALL(ga_accumulate(accumulator, loss, SAMPLES));
        CALL(ga_scope_close(scope, NULL, 0));
        CALL(ga_step(accumulator, &report));
    }
    CALL(ga_tensor_copy_out(parameters[0], weights, CLASSES * FEATURES * sizeof(float)));
    ga_accumulator_free(accumulator);
    ga_optimizer_free(optimizer);
    ga_tensor_free(parameters[0]);
    ga_tensor_free(parameters[1]);
    ga_tensor_free(x);
    ga_tensor_free(y);
}

int main(void) {
    static const struct {
        const char *name;
        unsigned int mode;
    } modes[] = {
        {"round to nearest", 0x1F80},  {"round down", 0x3F80},
        {"round up", 0x5F80},          {"round towards zero", 0x7F80},
        {"flush denormals", 0x9FC0},   {"exceptions unmasked", 0x0000},
    };
    static float expected[CLASSES * FEATURES], found[CLASSES * FEATURES];
    size_t i;

    for (i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        mode = modes[i].mode;
        train(found);
        if (i == 0)
            memcpy(expected, found, sizeof found);
        if (memcmp(expected, found, sizeof found) != 0) {
            printf("%s: other weights than in the default mode\n", modes[i].name);
            return 1;
        }
        printf("%s: ok\n", modes[i].name);
        fflush(stdout);
    }
    return 0;
}
