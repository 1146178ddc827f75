/*
 * train_gpt - trains a byte-level GPT on a text file
 *
 * The model is GPT-2's: pre-norm blocks, learned positions, and a head that shares the token embedding. A
 * batch is computed in micro-batches of any size; the weights come out the same to the last bit, as does
 * every number of examples/python/train_gpt.py, which is the same program.
 */
#define _XOPEN_SOURCE 700

#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "gradaccum.h"

#include "console.h"
#include "gpt.h"
#include "options.h"
#include "random.h"
#include "sha256.h"
#include "text.h"

#define BETA2 0.99
#define WEIGHT_DECAY 0.1
#define VALIDATION_WINDOWS 32
#define TEMPERATURE 0.6
#define PI 3.14159265358979323846

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

/* A second Ctrl-C ends the program where it stands. */
static void handle_interrupt(void)
{
    struct sigaction action = {0};

    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART | (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
}

static void stop_if_interrupted(void)
{
    if (interrupted)
        fail(EXIT_INTERRUPTED, "interrupted.");
}

/* ====== Windows of text ================================================================================= */

/* Room for the windows of one micro-batch, as the int32 that an embedding looks up. */
struct windows {
    int64_t context;
    int32_t *tokens;
    int32_t *targets; /* the byte after each token */
};

static struct windows windows_create(long long most, long long context)
{
    struct windows windows;

    windows.context = context;
    windows.tokens = allocate(most * context, sizeof *windows.tokens);
    windows.targets = allocate(most * context, sizeof *windows.targets);
    return windows;
}

static void windows_free(struct windows *windows)
{
    free(windows->tokens);
    free(windows->targets);
}

static void windows_set(struct windows *windows, int64_t row, const unsigned char *bytes)
{
    int64_t t;

    for (t = 0; t < windows->context; t++) {
        windows->tokens[row * windows->context + t] = bytes[t];
        windows->targets[row * windows->context + t] = bytes[t + 1];
    }
}

static void windows_tensors(const struct windows *windows, int64_t rows, ga_tensor **tokens,
                            ga_tensor **targets)
{
    const int64_t shape[2] = {rows, windows->context};

    check(ga_tensor_from_data(tokens, GA_DEVICE_CPU, GA_INT32, 2, shape, windows->tokens));
    check(ga_tensor_from_data(targets, GA_DEVICE_CPU, GA_INT32, 2, shape, windows->targets));
}

/* ====== Training ======================================================================================== */

/* Linear warmup, then a cosine from the highest learning rate to a tenth of it. */
static double learning_rate_of(const struct options *options, long long update)
{
    double done, cosine;

    if (update < options->warmup)
        return options->learning_rate * ((double)(update + 1) / (double)options->warmup);
    done = (double)(update - options->warmup) / (double)(options->updates - options->warmup);
    /* A statement of its own: a compiler may fuse a product and a sum of one expression into other bits. */
    cosine = 0.45 * cos(PI * done);
    return options->learning_rate * (0.55 + cosine);
}

/* One update: the batch in micro-batches, the last of them with what is left. */
static ga_report train_update(const struct gpt *gpt, ga_accumulator *accumulator,
                              const struct options *options, const struct text *text,
                              struct windows *windows, uint64_t *random)
{
    const uint64_t starts = (uint64_t)(text->train_length - options->context);
    ga_report report = GA_REPORT_INIT;
    long long done, rows;

    for (done = 0; done < options->batch; done += rows) {
        ga_scope *scope;
        ga_tensor *tokens, *targets;
        int64_t row;

        rows = options->micro_batch < options->batch - done ? options->micro_batch : options->batch - done;
        for (row = 0; row < rows; row++)
            windows_set(windows, row, text->bytes + random_next(random) % starts);
        check(ga_scope_open(&scope));
        windows_tensors(windows, rows, &tokens, &targets);
        check(ga_accumulate(accumulator, gpt_loss(gpt, tokens, targets), (double)(rows * options->context)));
        check(ga_scope_close(scope, NULL, 0));
        stop_if_interrupted();
    }
    check(ga_step(accumulator, &report));
    if (report.outcome != GA_STEP_APPLIED && report.outcome != GA_STEP_SKIPPED_OVERFLOW)
        fail(EXIT_FAILURE, "a gradient is no finite number any more: choose a lower --learning-rate.");
    return report;
}

/* The mean loss of windows spread evenly over the validation text. They are computed one at a time, so that
 * the sum, and with it the last digit, does not depend on --micro-batch. */
static double validation_loss(const struct gpt *gpt, const struct text *text, struct windows *windows)
{
    const long long last_start = text->validation_length - windows->context - 1;
    double sum = 0.0;
    long long i;

    check(ga_set_recording(0));
    for (i = 0; i < VALIDATION_WINDOWS; i++) {
        ga_scope *scope;
        ga_tensor *tokens, *targets;
        double loss;

        windows_set(windows, 0, text->bytes + text->train_length + last_start * i / (VALIDATION_WINDOWS - 1));
        check(ga_scope_open(&scope));
        windows_tensors(windows, 1, &tokens, &targets);
        check(ga_tensor_item(gpt_loss(gpt, tokens, targets), &loss));
        check(ga_scope_close(scope, NULL, 0));
        sum += loss;
        stop_if_interrupted();
    }
    check(ga_set_recording(1));
    return sum / (double)(VALIDATION_WINDOWS * windows->context);
}

/* Multiplies losses by a scale that keeps the gradients of float16 in its range: it is halved by an overflow, whose
 * window is skipped. A second skip in a row is an error where the scale cannot go lower. */
static ga_loss_scaler *scale_losses(ga_accumulator *accumulator)
{
    const ga_loss_scaler_options dynamic = GA_LOSS_SCALER_OPTIONS_INIT;
    ga_loss_scaler *scaler;

    check(ga_loss_scaler_create(&scaler, &dynamic));
    check(ga_accumulator_set_loss_scaler(accumulator, scaler));
    return scaler;
}

/* Returns the report of the last update. */
static ga_report train(const struct gpt *gpt, const struct options *options, const struct text *text,
                       struct progress *progress)
{
    ga_adamw_options adamw = GA_ADAMW_OPTIONS_INIT;
    ga_accumulator_options window = GA_ACCUMULATOR_OPTIONS_INIT;
    ga_optimizer *optimizer;
    ga_accumulator *accumulator;
    ga_loss_scaler *scaler = NULL;
    ga_report report = GA_REPORT_INIT;
    struct windows windows = windows_create(options->micro_batch, options->context);
    uint64_t random = random_start(options->seed, RANDOM_BATCHES);
    long long update;

    adamw.beta2 = BETA2;
    adamw.weight_decay = WEIGHT_DECAY;
    window.max_grad_norm = options->clip;
    window.max_consecutive_skips = 1;
    window.sum_format = options->sum_format;
    check(ga_adamw_create(&optimizer, gpt->parameters, gpt->parameter_count, &adamw));
    check(ga_accumulator_create(&accumulator, optimizer, &window));
    if (options->compute_dtype == GA_FLOAT16)
        scaler = scale_losses(accumulator);
    for (update = 0; update < options->updates; update = report.update_count) {
        const int report_is_due = (update + 1) % options->eval_every == 0 || update + 1 == options->updates;
        const double started_at = seconds_now();
        const uint64_t before = random;

        check(ga_optimizer_set_learning_rate(optimizer, learning_rate_of(options, update)));
        report = train_update(gpt, accumulator, options, text, &windows, &random);
        progress->training_seconds += seconds_now() - started_at;
        if (report.outcome != GA_STEP_APPLIED) {
            /* No update: the same window again, at the lower scale. */
            random = before;
            continue;
        }
        if (report_is_due)
            progress->validation_loss = validation_loss(gpt, text, &windows);
        progress_show(progress, update + 1, report.loss, report_is_due);
    }
    progress_end_line();
    ga_accumulator_free(accumulator);
    ga_loss_scaler_free(scaler);
    ga_optimizer_free(optimizer);
    windows_free(&windows);
    return report;
}

/* ====== The sample ====================================================================================== */

static int draw_byte(const float logits[VOCABULARY], uint64_t *random)
{
    const double uniform = (double)(random_next(random) >> 11) / 9007199254740992.0; /* 2^53 */
    double probabilities[VOCABULARY], highest = logits[0], total = 0.0, threshold, reached = 0.0;
    int byte;

    for (byte = 1; byte < VOCABULARY; byte++)
        highest = logits[byte] > highest ? logits[byte] : highest;
    for (byte = 0; byte < VOCABULARY; byte++) {
        probabilities[byte] = exp((logits[byte] - highest) / TEMPERATURE);
        total += probabilities[byte];
    }
    threshold = uniform * total;
    for (byte = 0; byte < VOCABULARY - 1; byte++) {
        reached += probabilities[byte];
        if (reached > threshold)
            break;
    }
    return byte;
}

/* Text stays as it is, UTF-8 too; what would move a terminal's cursor does not. */
static void print_byte(int byte)
{
    putchar(byte == '\n' || (byte >= 0x20 && byte != 0x7f) ? byte : '?');
    fflush(stdout);
}

/* The model always gets a whole window: what lies after the last byte cannot be seen from it. */
static void print_sample(const struct gpt *gpt, const struct options *options)
{
    const int64_t context = options->context;
    const int64_t shape[2] = {1, context};
    int32_t *window = allocate(context, sizeof *window);
    uint64_t random = random_start(options->seed, RANDOM_SAMPLE);
    int64_t length = 1;
    long long i;

    window[0] = '\n';
    check(ga_set_recording(0));
    for (i = 0; i < options->sample; i++) {
        ga_scope *scope;
        ga_tensor *tokens, *hidden;
        float logits[VOCABULARY];
        int byte;

        check(ga_scope_open(&scope));
        check(ga_tensor_from_data(&tokens, GA_DEVICE_CPU, GA_INT32, 2, shape, window));
        check(ga_slice(&hidden, gpt_hidden(gpt, tokens), 1, length - 1, length));
        check(ga_tensor_copy_out(gpt_logits(gpt, hidden), logits, sizeof logits));
        check(ga_scope_close(scope, NULL, 0));
        byte = draw_byte(logits, &random);
        print_byte(byte);
        if (length < context) {
            window[length++] = byte;
        } else {
            memmove(window, window + 1, (size_t)(context - 1) * sizeof *window);
            window[context - 1] = byte;
        }
        stop_if_interrupted();
    }
    check(ga_set_recording(1));
    free(window);
}

/* ====== The result ====================================================================================== */

static void hash_weights(const struct gpt *gpt, char hex[SHA256_HEX_SIZE])
{
    struct sha256 hash = sha256_start();
    int64_t i;

    for (i = 0; i < gpt->parameter_count; i++) {
        int64_t count;
        void *data;

        check(ga_tensor_element_count(gpt->parameters[i], &count));
        check(ga_tensor_data(gpt->parameters[i], &data));
        sha256_update(&hash, data, (size_t)count * sizeof(float));
    }
    sha256_finish(&hash, hex);
}

static double peak_rss_mb(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024.0;
}

int main(int argc, char **argv)
{
    const struct options options = parse_options(argc, argv);
    struct text text = text_read(options.text, options.context);
    struct progress progress;
    struct gpt gpt;
    ga_report report;
    char weights_sha256[SHA256_HEX_SIZE];

    handle_interrupt();
    if (options.threads > 0)
        check(ga_set_num_threads((int32_t)options.threads));
    check(ga_set_compute_dtype(options.compute_dtype));
    gpt = gpt_create(options.layers, options.channels, options.heads, options.context,
                     options.checkpointing, random_start(options.seed, RANDOM_WEIGHTS));
    progress = progress_start(options.updates, options.batch * options.context);
    report = train(&gpt, &options, &text, &progress);
    if (options.sample > 0) {
        puts("\n------ sample ------");
        print_sample(&gpt, &options);
        puts("\n--------------------\n");
    }
    hash_weights(&gpt, weights_sha256);
    printf("RESULT updates=%lld train_loss=%.6f val_loss=%.6f tokens_per_s=%.0f peak_rss_mb=%.1f "
           "weights_sha256=%s\n", (long long)report.update_count, report.loss, progress.validation_loss,
           progress_tokens_per_second(&progress, options.updates), peak_rss_mb(), weights_sha256);
    gpt_free(&gpt);
    free(text.bytes);
    finish_output();
    return EXIT_SUCCESS;
}
