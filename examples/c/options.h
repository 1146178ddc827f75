/*
 * options.h - the command line of train_gpt
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gradaccum.h"

#include "console.h"

/* The product of any two sizes still fits an int64_t. */
#define LARGEST_SIZE 1000000000LL
#define LARGEST_SEED 9223372036854775807LL
#define MOST_LAYERS 1000LL
#define MOST_THREADS 1024LL

struct options {
    const char *text;
    long long layers;
    long long channels;
    long long heads;
    long long context;
    long long batch;
    long long micro_batch; /* 0 until it is known: the whole batch */
    long long updates;
    double learning_rate;
    long long warmup;
    double clip;
    long long seed;
    long long threads;     /* 0: as many as the library chooses */
    long long eval_every;
    long long sample;
    int checkpointing;
    int32_t compute_dtype;
    int32_t sum_format;
};

static const struct options DEFAULT_OPTIONS = {
    .layers = 3,
    .channels = 160,
    .heads = 5,
    .context = 64,
    .batch = 12,
    .updates = 3000,
    .learning_rate = 6e-3,
    .warmup = 100,
    .clip = 1.0,
    .seed = 1,
    .eval_every = 200,
    .sample = 600,
    .compute_dtype = GA_FLOAT32,
    .sum_format = GA_SUM_FLOAT32,
};

static const char HELP[] =
    "usage: " PROGRAM " --text FILE [--option value]...\n"
    "\n"
    "Trains a byte-level GPT on a text file and prints a sample of what it learned.\n"
    "The first 90 %% of the text is for training, the rest for validation.\n"
    "\n"
    "  --text FILE            the text\n"
    "  --layers N             transformer blocks (%lld)\n"
    "  --channels N           width of the residual stream (%lld)\n"
    "  --heads N              attention heads, a divisor of --channels (%lld)\n"
    "  --context N            bytes that the model sees at once (%lld)\n"
    "  --batch N              windows of text per update (%lld)\n"
    "  --micro-batch N        windows that are computed together (the whole batch);\n"
    "                         it changes memory and speed, and no bit of the result\n"
    "  --updates N            optimizer updates (%lld)\n"
    "  --learning-rate X      highest learning rate of AdamW (%g)\n"
    "  --warmup N             updates until it is reached; a cosine to a tenth of it follows (%lld)\n"
    "  --clip X               largest global gradient norm, 0 for no limit (%g)\n"
    "  --seed N               of the weights, the batches and the sample (%lld)\n"
    "  --threads N            (all CPUs); it changes no bit of the result\n"
    "  --eval-every N         updates between two validation losses (%lld)\n"
    "  --sample N             bytes of text to generate in the end (%lld)\n"
    "  --checkpointing        compute blocks again in backward instead of keeping their activations;\n"
    "                         it changes memory and speed, and no bit of the result\n"
    "  --compute f32|bf16|f16 what matrix products multiply in (f32); sums, weights and optimizer stay f32,\n"
    "                         and with f16 a dynamic loss scale keeps gradients in its range\n"
    "  --sums f32|bf16-stochastic|bf16-kahan|bf16\n"
    "                         what sums of gradients are kept in (f32), and how they are rounded\n"
    "  --help                 this page\n";

static void print_help(void)
{
    const struct options o = DEFAULT_OPTIONS;

    printf(HELP, o.layers, o.channels, o.heads, o.context, o.batch, o.updates, o.learning_rate, o.warmup,
           o.clip, o.seed, o.eval_every, o.sample);
}

struct option {
    const char *name;
    enum {
        OPTION_FLAG,
        OPTION_TEXT,
        OPTION_INTEGER,
        OPTION_POSITIVE_NUMBER,
        OPTION_NUMBER,
        OPTION_COMPUTE_DTYPE,
        OPTION_SUM_FORMAT
    } kind;
    void *target;
    long long lowest; /* of an integer */
    long long highest;
};

static long long parse_integer(const struct option *option, const char *value)
{
    const char *digits = value + (value[0] == '-');
    long long integer;

    errno = 0;
    integer = strtoll(value, NULL, 10);
    if (*digits == '\0' || strspn(digits, "0123456789") != strlen(digits) || errno != 0 ||
        integer < option->lowest || integer > option->highest)
        fail(EXIT_USAGE, "%s must be a whole number from %lld to %lld, but it is '%s'.", option->name,
             option->lowest, option->highest, value);
    return integer;
}

static double parse_number(const struct option *option, const char *value)
{
    char *end;
    double number = strtod(value, &end);
    int zero_is_allowed = option->kind == OPTION_NUMBER;

    /* The set of characters keeps out what strtod takes as well: spaces, "nan" and hexadecimal numbers. */
    if (*value == '\0' || *end != '\0' || strspn(value, "0123456789+-.eE") != strlen(value) ||
        !isfinite(number) || number < 0 || (number == 0 && !zero_is_allowed))
        fail(EXIT_USAGE, "%s must be a number %s, but it is '%s'.", option->name,
             zero_is_allowed ? "of at least 0" : "greater than 0", value);
    return number;
}

static int32_t parse_compute_dtype(const struct option *option, const char *value)
{
    if (strcmp(value, "f32") == 0)
        return GA_FLOAT32;
    if (strcmp(value, "bf16") == 0)
        return GA_BFLOAT16;
    if (strcmp(value, "f16") != 0)
        fail(EXIT_USAGE, "%s must be f32, bf16 or f16, but it is '%s'.", option->name, value);
    return GA_FLOAT16;
}

static int32_t parse_sum_format(const struct option *option, const char *value)
{
    static const char *const names[] = {"f32", "bf16-stochastic", "bf16-kahan", "bf16"};
    static const int32_t formats[] = {GA_SUM_FLOAT32, GA_SUM_BFLOAT16_STOCHASTIC, GA_SUM_BFLOAT16_KAHAN, GA_SUM_BFLOAT16};
    size_t i = 0;

    while (i < sizeof formats / sizeof *formats && strcmp(value, names[i]) != 0)
        i++;
    if (i == sizeof formats / sizeof *formats)
        fail(EXIT_USAGE, "%s must be f32, bf16-stochastic, bf16-kahan or bf16, but it is '%s'.", option->name, value);
    return formats[i];
}

static void set_option(const struct option *option, const char *value)
{
    switch (option->kind) {
    case OPTION_FLAG:
        *(int *)option->target = 1;
        break;
    case OPTION_TEXT:
        *(const char **)option->target = value;
        break;
    case OPTION_INTEGER:
        *(long long *)option->target = parse_integer(option, value);
        break;
    case OPTION_POSITIVE_NUMBER:
    case OPTION_NUMBER:
        *(double *)option->target = parse_number(option, value);
        break;
    case OPTION_COMPUTE_DTYPE:
        *(int32_t *)option->target = parse_compute_dtype(option, value);
        break;
    case OPTION_SUM_FORMAT:
        *(int32_t *)option->target = parse_sum_format(option, value);
        break;
    }
}

static void check_options(struct options *o)
{
    if (o->text == NULL)
        fail(EXIT_USAGE, "--text FILE is needed: the text to train on.");
    if (o->channels % o->heads != 0)
        fail(EXIT_USAGE, "--heads %lld does not divide --channels %lld.", o->heads, o->channels);
    if (o->micro_batch == 0)
        o->micro_batch = o->batch;
    if (o->micro_batch > o->batch)
        fail(EXIT_USAGE, "--micro-batch %lld is more than --batch %lld.", o->micro_batch, o->batch);
}

static struct options parse_options(int argc, char **argv)
{
    struct options o = DEFAULT_OPTIONS;
    const struct option table[] = {
        {"--text", OPTION_TEXT, &o.text, 0, 0},
        {"--layers", OPTION_INTEGER, &o.layers, 1, MOST_LAYERS},
        {"--channels", OPTION_INTEGER, &o.channels, 1, LARGEST_SIZE},
        {"--heads", OPTION_INTEGER, &o.heads, 1, LARGEST_SIZE},
        {"--context", OPTION_INTEGER, &o.context, 1, LARGEST_SIZE},
        {"--batch", OPTION_INTEGER, &o.batch, 1, LARGEST_SIZE},
        {"--micro-batch", OPTION_INTEGER, &o.micro_batch, 1, LARGEST_SIZE},
        {"--updates", OPTION_INTEGER, &o.updates, 1, LARGEST_SIZE},
        {"--learning-rate", OPTION_POSITIVE_NUMBER, &o.learning_rate, 0, 0},
        {"--warmup", OPTION_INTEGER, &o.warmup, 0, LARGEST_SIZE},
        {"--clip", OPTION_NUMBER, &o.clip, 0, 0},
        {"--seed", OPTION_INTEGER, &o.seed, 0, LARGEST_SEED},
        {"--threads", OPTION_INTEGER, &o.threads, 1, MOST_THREADS},
        {"--eval-every", OPTION_INTEGER, &o.eval_every, 1, LARGEST_SIZE},
        {"--sample", OPTION_INTEGER, &o.sample, 0, LARGEST_SIZE},
        {"--checkpointing", OPTION_FLAG, &o.checkpointing, 0, 0},
        {"--compute", OPTION_COMPUTE_DTYPE, &o.compute_dtype, 0, 0},
        {"--sums", OPTION_SUM_FORMAT, &o.sum_format, 0, 0},
    };
    const size_t table_length = sizeof table / sizeof table[0];
    int i;

    for (i = 1; i < argc; i++) {
        size_t name_length = strcspn(argv[i], "=");
        const char *value = argv[i][name_length] == '=' ? argv[i] + name_length + 1 : NULL;
        size_t k;

        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help();
            finish_output();
            exit(EXIT_SUCCESS);
        }
        for (k = 0; k < table_length; k++)
            if (strlen(table[k].name) == name_length && strncmp(argv[i], table[k].name, name_length) == 0)
                break;
        if (k == table_length)
            fail(EXIT_USAGE, "there is no option '%s'; --help lists them.", argv[i]);
        if (table[k].kind == OPTION_FLAG) {
            if (value != NULL)
                fail(EXIT_USAGE, "%s takes no value.", table[k].name);
        } else if (value == NULL && i + 1 < argc) {
            value = argv[++i];
        }
        if (value == NULL && table[k].kind != OPTION_FLAG)
            fail(EXIT_USAGE, "%s needs a value.", table[k].name);
        set_option(&table[k], value);
    }
    check_options(&o);
    return o;
}

#endif /* OPTIONS_H */
