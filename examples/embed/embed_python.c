/*
 * embed_python - a C program that embeds Python, and shares one library, one model and one accumulator with a script
 *
 *     embed_python TEXT DIRECTORY-OF-guest.py
 *
 * It trains a small language model three times: in C alone; with the first micro-batch of each window in C and the
 * second in Python, and the step by turns; and with all of it in Python. The library is in the process once, no element
 * is copied from one language to the other, and the weights are the same to the last bit: the exit status is 1 if they
 * are not.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gradaccum.h"

#define CONTEXT 8
#define CHANNELS 16
#define HIDDEN 64
#define VOCABULARY 256
#define BATCH 48
#define SPLIT 20 /* the samples that go before the others; any number gives the same weights */
#define UPDATES 60
#define PARAMETERS 5

static void fail(const char *format, ...)
{
    va_list arguments;

    fputs("embed_python: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static void check(ga_status status)
{
    if (status != GA_OK)
        fail("%s", ga_last_error());
}

/* Ends the program with Python's traceback where a call has failed; else returns what the call did. */
static PyObject *python(PyObject *result)
{
    if (result == NULL) {
        PyErr_Print();
        fail("the script failed.");
    }
    return result;
}

/* ====== The model, which C owns ======================================================================== */

struct model {
    ga_tensor *parameters[PARAMETERS]; /* embedding, weight1, bias1, weight2, bias2 */
    ga_tensor *before, *next;          /* the batch: bytes, and the byte after each CONTEXT of them */
    ga_optimizer *optimizer;
    ga_accumulator *accumulator;
};

static void model_create(struct model *model)
{
    const int64_t shapes[PARAMETERS][2] = {
        {VOCABULARY, CHANNELS}, {HIDDEN, CONTEXT * CHANNELS}, {HIDDEN, 1}, {VOCABULARY, HIDDEN}, {VOCABULARY, 1}};
    const int64_t batch[2] = {BATCH, CONTEXT};
    ga_adamw_options adamw = GA_ADAMW_OPTIONS_INIT;
    ga_accumulator_options window = GA_ACCUMULATOR_OPTIONS_INIT;
    int32_t i;

    for (i = 0; i < PARAMETERS; i++) {
        const int is_bias = shapes[i][1] == 1;

        check(ga_tensor_create(&model->parameters[i], GA_DEVICE_CPU, GA_FLOAT32, is_bias ? 1 : 2, shapes[i]));
        if (!is_bias)
            check(ga_tensor_fill_normal(model->parameters[i], 0.0, 0.08, (uint64_t)i + 1));
    }
    check(ga_tensor_create(&model->before, GA_DEVICE_CPU, GA_INT32, 2, batch));
    check(ga_tensor_create(&model->next, GA_DEVICE_CPU, GA_INT32, 1, batch));
    adamw.learning_rate = 3e-3;
    window.max_grad_norm = 1.0;
    window.accumulation_steps = 2;
    check(ga_adamw_create(&model->optimizer, model->parameters, PARAMETERS, &adamw));
    check(ga_accumulator_create(&model->accumulator, model->optimizer, &window));
}

static void model_free(struct model *model)
{
    int i;

    ga_accumulator_free(model->accumulator);
    ga_optimizer_free(model->optimizer);
    ga_tensor_free(model->before);
    ga_tensor_free(model->next);
    for (i = 0; i < PARAMETERS; i++)
        ga_tensor_free(model->parameters[i]);
}

/* As guest.py does it. */
static void accumulate(const struct model *model, int64_t begin, int64_t end)
{
    const int64_t flat[2] = {end - begin, CONTEXT * CHANNELS};
    ga_tensor *const *p = model->parameters;
    ga_tensor *before, *next, *x;
    ga_scope *scope;

    check(ga_scope_open(&scope));
    check(ga_slice(&before, model->before, 0, begin, end));
    check(ga_embedding(&x, p[0], before));
    check(ga_reshape(&x, x, 2, flat));
    check(ga_linear(&x, x, p[1], p[2]));
    check(ga_gelu(&x, x, GA_GELU_TANH));
    check(ga_linear(&x, x, p[3], p[4]));
    check(ga_slice(&next, model->next, 0, begin, end));
    check(ga_cross_entropy(&x, x, next, GA_NO_IGNORE_INDEX, GA_REDUCTION_SUM));
    check(ga_accumulate(model->accumulator, x, (double)(end - begin)));
    check(ga_scope_close(scope, NULL, 0));
}

/* 64-bit FNV-1a over all weights. */
static uint64_t model_hash(const struct model *model)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    int i;

    for (i = 0; i < PARAMETERS; i++) {
        int64_t count, byte;
        void *data;

        check(ga_tensor_element_count(model->parameters[i], &count));
        check(ga_tensor_data(model->parameters[i], &data));
        for (byte = 0; byte < count * 4; byte++)
            hash = (hash ^ ((const unsigned char *)data)[byte]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* ====== The text ======================================================================================== */

static unsigned char *read_text(const char *path, size_t *length)
{
    const size_t capacity = (size_t)1 << 24;
    unsigned char *bytes = malloc(capacity);
    FILE *file = fopen(path, "rb");

    if (bytes == NULL || file == NULL)
        fail("'%s' cannot be read.", path);
    *length = fread(bytes, 1, capacity, file);
    fclose(file);
    if (*length < 100 * CONTEXT)
        fail("'%s' is too short to learn from.", path);
    return bytes;
}

/* Writes the samples of an update to the tensors of the batch, in place. */
static void fill_batch(const struct model *model, const unsigned char *text, size_t length, int update)
{
    int32_t *before, *next;
    void *address;
    size_t row;

    check(ga_tensor_data(model->before, &address));
    before = address;
    check(ga_tensor_data(model->next, &address));
    next = address;
    for (row = 0; row < BATCH; row++) {
        const size_t start = ((size_t)update * BATCH + row) * 7919 % (length - CONTEXT);
        size_t i;

        for (i = 0; i < CONTEXT; i++)
            before[row * CONTEXT + i] = text[start + i];
        next[row] = text[start + CONTEXT];
    }
}

/* ====== Training ======================================================================================== */

/* The script's object for a model: it borrows the handles. */
static PyObject *guest_create(PyObject *module, const struct model *model)
{
    PyObject *tensors = python(PyList_New(0)), *guest;
    int i;

    for (i = 0; i < PARAMETERS + 2; i++) {
        ga_tensor *tensor = i < PARAMETERS ? model->parameters[i] : i == PARAMETERS ? model->before : model->next;
        PyObject *handle = python(PyLong_FromVoidPtr(tensor));

        if (PyList_Append(tensors, handle) != 0)
            python(NULL);
        Py_DECREF(handle);
    }
    guest = python(PyObject_CallMethod(module, "Guest", "ONN", tensors, python(PyLong_FromVoidPtr(model->optimizer)),
                                       python(PyLong_FromVoidPtr(model->accumulator))));
    Py_DECREF(tensors);
    return guest;
}

enum who { IN_C, IN_BOTH, IN_PYTHON };

/* Trains a new model, prints what came of it, and returns the hash of its weights. */
static uint64_t train(PyObject *module, const char *name, enum who who, const unsigned char *text, size_t length)
{
    struct model model;
    PyObject *guest;
    double loss = 0.0;
    uint64_t hash;
    int update;

    model_create(&model);
    guest = guest_create(module, &model);
    for (update = 0; update < UPDATES; update++) {
        fill_batch(&model, text, length, update);
        if (who == IN_PYTHON)
            Py_DECREF(python(PyObject_CallMethod(guest, "accumulate", "ii", 0, SPLIT)));
        else
            accumulate(&model, 0, SPLIT);
        if (who == IN_C)
            accumulate(&model, SPLIT, BATCH);
        else
            Py_DECREF(python(PyObject_CallMethod(guest, "accumulate", "ii", SPLIT, BATCH)));
        if (who == IN_PYTHON || (who == IN_BOTH && update % 2 == 1)) {
            PyObject *result = python(PyObject_CallMethod(guest, "step", NULL));

            loss = PyFloat_AsDouble(result);
            Py_DECREF(result);
        } else {
            ga_report report = GA_REPORT_INIT;

            check(ga_step(model.accumulator, &report));
            loss = report.loss;
        }
    }
    hash = model_hash(&model);
    Py_DECREF(guest);
    printf("%-12s  loss %.6f  weights_fnv1a %016llx\n", name, loss, (unsigned long long)hash);
    model_free(&model);
    return hash;
}

int main(int argc, char **argv)
{
    PyObject *directory, *module;
    unsigned char *text;
    uint64_t in_c, in_both, in_python;
    ga_memory memory = GA_MEMORY_INIT;
    size_t length;

    if (argc != 3) {
        fputs("usage: embed_python TEXT DIRECTORY-OF-guest.py\n", stderr);
        return 2;
    }
    text = read_text(argv[1], &length);
    Py_InitializeEx(0);
    directory = python(PyUnicode_DecodeFSDefault(argv[2]));
    if (PyList_Insert(PySys_GetObject("path"), 0, directory) != 0)
        python(NULL);
    Py_DECREF(directory);
    module = python(PyImport_ImportModule("guest"));
    in_c = train(module, "C", IN_C, text, length);
    in_both = train(module, "C and Python", IN_BOTH, text, length);
    in_python = train(module, "Python", IN_PYTHON, text, length);
    Py_DECREF(module);
    free(text);
    if (Py_FinalizeEx() != 0)
        fail("Python did not end well.");
    check(ga_memory_usage(&memory));
    if (memory.live_bytes != 0)
        fail("%lld bytes of tensors are left.", (long long)memory.live_bytes);
    if (in_both != in_c || in_python != in_c)
        fail("the weights are not the same.");
    return EXIT_SUCCESS;
}
