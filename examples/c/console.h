/*
 * console.h - what a person sees while the program runs: its progress, and one sentence if it fails
 */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "gradaccum.h"

#define PROGRAM "train_gpt"

/* Beside EXIT_SUCCESS and EXIT_FAILURE. */
#define EXIT_USAGE 2
#define EXIT_INTERRUPTED 130

#define REDRAWS_PER_SECOND 10.0

/* Set while the cursor stands at the end of a progress line that the next redraw would replace. */
static int progress_line_is_open;

static void progress_end_line(void)
{
    if (progress_line_is_open) {
        putchar('\n');
        progress_line_is_open = 0;
    }
    fflush(stdout);
}

/* Ends the program with one sentence on stderr. */
static void fail(int exit_status, const char *format, ...)
{
    va_list arguments;

    progress_end_line();
    fputs(PROGRAM ": ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(exit_status);
}

/* A program must not end well while its output is lost, as on a full disk. */
static void finish_output(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        fail(EXIT_FAILURE, "the output could not be written.");
}

static void check(ga_status status)
{
    if (status != GA_OK)
        fail(EXIT_FAILURE, "%s", ga_last_error());
}

static void *allocate(long long count, size_t size)
{
    void *memory = calloc((size_t)count, size);

    if (memory == NULL)
        fail(EXIT_FAILURE, "out of memory: choose a smaller model, --context or --micro-batch.");
    return memory;
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

struct progress {
    int is_terminal;
    long long updates;
    long long tokens_per_update;
    double started_at;
    double drawn_at;
    double training_seconds; /* the updates alone, so that evaluations do not count as slow training */
    double validation_loss;  /* NaN before the first evaluation */
};

static struct progress progress_start(long long updates, long long tokens_per_update)
{
    struct progress progress = {0};

    progress.is_terminal = isatty(STDOUT_FILENO);
    progress.updates = updates;
    progress.tokens_per_update = tokens_per_update;
    progress.started_at = seconds_now();
    progress.validation_loss = NAN;
    return progress;
}

static double progress_tokens_per_second(const struct progress *progress, long long updates_done)
{
    return (double)(updates_done * progress->tokens_per_update) / progress->training_seconds;
}

/* A terminal has one line that is redrawn; anything else gets a line where a report is due. */
static void progress_show(struct progress *progress, long long updates_done, double loss, int report_is_due)
{
    double now = seconds_now();
    double per_update = (now - progress->started_at) / (double)updates_done;
    long long seconds_left = (long long)(per_update * (double)(progress->updates - updates_done) + 0.5);
    char validation[32] = "";

    if (!report_is_due && (!progress->is_terminal || now - progress->drawn_at < 1.0 / REDRAWS_PER_SECOND))
        return;
    if (!isnan(progress->validation_loss))
        snprintf(validation, sizeof validation, "  validation %.4f", progress->validation_loss);
    printf("%supdate %lld/%lld  loss %.4f%s  %.0f tokens/s  %lld:%02lld left%s",
           progress->is_terminal ? "\r" : "", updates_done, progress->updates, loss, validation,
           progress_tokens_per_second(progress, updates_done), seconds_left / 60, seconds_left % 60,
           progress->is_terminal ? "\033[K" : "\n");
    fflush(stdout);
    progress_line_is_open = progress->is_terminal;
    progress->drawn_at = now;
}

#endif /* CONSOLE_H */
