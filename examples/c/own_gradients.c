/*
 * own_gradients - a loop that computes its own gradients and leaves their accumulation to the library
 *
 * The data: boiling point of water (degrees Fahrenheit) and air pressure (inches of mercury) at 17 places in
 * the Alps and in Scotland, from James D. Forbes, "Further experiments and remarks on the measurement of
 * heights by the boiling point of water", Trans. Royal Society of Edinburgh 21, 1857.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "gradaccum.h"

#define SAMPLES 17
#define MICRO_BATCH 5 /* the last of the 4 micro-batches has 2 samples */
#define UPDATES 100

static const double boiling_point[SAMPLES] = {194.5, 194.3, 197.9, 198.4, 199.4, 199.9, 200.9, 201.1, 201.4,
                                              201.3, 203.6, 204.6, 209.5, 208.6, 210.7, 211.9, 212.2};
static const double pressure[SAMPLES] = {20.79, 20.79, 22.40, 22.67, 23.15, 23.35, 23.89, 23.99, 24.02,
                                         24.01, 25.14, 26.57, 28.49, 27.76, 29.04, 29.88, 30.06};

static void check(ga_status status)
{
    if (status != GA_OK) {
        fprintf(stderr, "own_gradients: %s\n", ga_last_error());
        exit(EXIT_FAILURE);
    }
}

int main(void)
{
    float line[2] = {0.0f, 0.0f}, gradient[2]; /* intercept and slope; ga_step updates them in place */
    const void *gradients[1] = {gradient};
    const int64_t shape[1] = {2};
    double x[SAMPLES], y[SAMPLES], sum_y = 0.0, sum_xx = 0.0, sum_xy = 0.0;
    ga_tensor *parameter;
    ga_sgd_options sgd = GA_SGD_OPTIONS_INIT;
    ga_accumulator_options window = GA_ACCUMULATOR_OPTIONS_INIT;
    ga_optimizer *optimizer;
    ga_accumulator *accumulator;
    ga_report report = GA_REPORT_INIT;
    int32_t i, first = 0, due;

    check(ga_tensor_wrap(&parameter, GA_DEVICE_CPU, GA_FLOAT32, 1, shape, NULL, line, NULL, NULL));
    sgd.learning_rate = 0.1;
    window.accumulation_steps = (SAMPLES + MICRO_BATCH - 1) / MICRO_BATCH;
    check(ga_sgd_create(&optimizer, &parameter, 1, &sgd));
    check(ga_accumulator_create(&accumulator, optimizer, &window));
    for (i = 0; i < SAMPLES; i++) {
        x[i] = (boiling_point[i] - 3450.2 / SAMPLES) / 5.0; /* mean 0 and a size near 1: a quick descent */
        y[i] = 100.0 * log10(pressure[i]);
        sum_y += y[i];
        sum_xx += x[i] * x[i];
        sum_xy += x[i] * y[i];
    }
    while (report.update_count < UPDATES) {
        double loss = gradient[0] = gradient[1] = 0.0f;
        for (i = first; i < SAMPLES && i < first + MICRO_BATCH; i++) {
            const double error = line[0] + line[1] * x[i] - y[i];
            loss += error * error;
            gradient[0] += (float)(2.0 * error);
            gradient[1] += (float)(2.0 * error * x[i]);
        }
        check(ga_accumulate_gradients(accumulator, gradients, 1, GA_FLOAT32, loss, i - first));
        check(ga_step_due(accumulator, &due));
        if (due)
            check(ga_step(accumulator, &report));
        if (due && report.update_count % 20 == 0)
            printf("update %3d  mean squared error %.6f\n", (int)report.update_count, report.loss);
        first = i % SAMPLES;
    }
    printf("trained        %.5f + %.5f x\n", line[0], line[1]);
    printf("least squares  %.5f + %.5f x\n", sum_y / SAMPLES, sum_xy / sum_xx);
    ga_accumulator_free(accumulator);
    ga_optimizer_free(optimizer);
    ga_tensor_free(parameter);
    return fabs(line[0] - sum_y / SAMPLES) > 1e-3 || fabs(line[1] - sum_xy / sum_xx) > 1e-3;
}
