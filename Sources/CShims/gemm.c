/*
 * Products by oneDNN. Each thread keeps its own primitives by shape, with their memory objects and one
 * scratchpad, so that a call needs no lock and, once the shape is known, no allocation.
 */
#include "shims.h"

#include <dnnl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 2048         /* a power of two */
#define MOST_PRODUCTS 1536 /* more shapes than this start the cache anew */

enum { SOURCE, WEIGHTS, BIAS, DESTINATION, SCRATCHPAD, ARGUMENTS };

typedef struct product {
    shims_gemm_shape shape;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[ARGUMENTS];
    size_t scratch_bytes;
} product;

typedef struct thread_products {
    product *slots[SLOTS];
    int count;
    dnnl_stream_t stream;
    void *scratch;
    size_t scratch_bytes;
} thread_products;

static dnnl_engine_t engine;
static pthread_once_t engine_once = PTHREAD_ONCE_INIT;
static pthread_key_t products_key;
static _Thread_local thread_products *products;

static void product_free(product *p) {
    for (int i = 0; i < ARGUMENTS; i++)
        if (p->memory[i]) dnnl_memory_destroy(p->memory[i]);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    free(p);
}

static void products_clear(thread_products *t) {
    for (int i = 0; i < SLOTS; i++)
        if (t->slots[i]) {
            product_free(t->slots[i]);
            t->slots[i] = NULL;
        }
    t->count = 0;
}

static void products_free(void *argument) {
    thread_products *t = argument;
    products_clear(t);
    if (t->stream) dnnl_stream_destroy(t->stream);
    free(t->scratch);
    free(t);
}

static void engine_start(void) {
    if (pthread_key_create(&products_key, products_free) != 0) return;
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) engine = NULL;
}

static thread_products *products_of_thread(void) {
    if (products) return products;
    pthread_once(&engine_once, engine_start);
    if (!engine) return NULL;
    thread_products *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    if (dnnl_stream_create(&t->stream, engine, dnnl_stream_default_flags) != dnnl_success ||
        pthread_setspecific(products_key, t) != 0) {
        products_free(t);
        return NULL;
    }
    return products = t;
}

int32_t shims_gemm_limit(int32_t level) {
    const dnnl_cpu_isa_t limit = level == 0 ? dnnl_cpu_isa_sse41 : dnnl_cpu_isa_avx2;
    return level >= 2 || dnnl_set_max_cpu_isa(limit) == dnnl_success;
}

/* ------ the two generations of oneDNN's interface ---------------------------------------------------------- */

typedef dnnl_memory_desc_t descriptor;

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t descriptor_view;

static descriptor_view view(const descriptor *d) { return *d; }

static dnnl_status_t describe(descriptor *out, const dnnl_dims_t sizes, const dnnl_dims_t strides) {
    return dnnl_memory_desc_create_with_strides(out, 2, sizes, dnnl_f32, strides);
}

static void descriptor_free(descriptor *d) {
    if (*d) dnnl_memory_desc_destroy(*d);
}

static dnnl_status_t describe_product(dnnl_primitive_desc_t *out, const descriptor *d, int has_bias,
                                      dnnl_primitive_attr_t attributes) {
    return dnnl_matmul_primitive_desc_create(out, engine, d[SOURCE], d[WEIGHTS], has_bias ? d[BIAS] : NULL,
                                             d[DESTINATION], attributes);
}

static dnnl_status_t append_sum(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_sum(operations, 1.0f, 0, dnnl_data_type_undef);
}
#else
typedef const dnnl_memory_desc_t *descriptor_view;

static descriptor_view view(const descriptor *d) { return d; }

static dnnl_status_t describe(descriptor *out, const dnnl_dims_t sizes, const dnnl_dims_t strides) {
    return dnnl_memory_desc_init_by_strides(out, 2, sizes, dnnl_f32, strides);
}

static void descriptor_free(descriptor *d) { (void)d; }

static dnnl_status_t describe_product(dnnl_primitive_desc_t *out, const descriptor *d, int has_bias,
                                      dnnl_primitive_attr_t attributes) {
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status =
        dnnl_matmul_desc_init(&matmul, &d[SOURCE], &d[WEIGHTS], has_bias ? &d[BIAS] : NULL, &d[DESTINATION]);
    if (status != dnnl_success) return status;
    return dnnl_primitive_desc_create(out, &matmul, attributes, engine, NULL);
}

static dnnl_status_t append_sum(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_sum(operations, 1.0f);
}
#endif

static dnnl_status_t make_memory(dnnl_memory_t *out, descriptor_view d) {
    return dnnl_memory_create(out, d, engine, DNNL_MEMORY_NONE);
}

/* ------ products ------------------------------------------------------------------------------------------ */

static dnnl_status_t make_attributes(dnnl_primitive_attr_t *out, int accumulate) {
    dnnl_status_t status = dnnl_primitive_attr_create(out);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    if (status != dnnl_success || !accumulate) return status;
    dnnl_post_ops_t operations;
    status = dnnl_post_ops_create(&operations);
    if (status != dnnl_success) return status;
    status = append_sum(operations);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(*out, operations);
    dnnl_post_ops_destroy(operations);
    return status;
}

static dnnl_status_t fill_product(product *p) {
    const shims_gemm_shape *s = &p->shape;
    const int has_bias = s->has_bias;
    const dnnl_dims_t sizes[4] = {{s->m, s->k}, {s->k, s->n}, {1, s->n}, {s->m, s->n}};
    const dnnl_dims_t strides[4] = {
        {s->transpose_a ? 1 : s->lda, s->transpose_a ? s->lda : 1},
        {s->transpose_b ? 1 : s->ldb, s->transpose_b ? s->ldb : 1},
        {s->n, 1},
        {s->ldc, 1},
    };
    descriptor descriptors[4];
    memset(descriptors, 0, sizeof descriptors);
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t description = NULL;
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < 4 && status == dnnl_success; i++) status = describe(&descriptors[i], sizes[i], strides[i]);
    if (status == dnnl_success) status = make_attributes(&attributes, s->accumulate);
    if (status == dnnl_success) status = describe_product(&description, descriptors, has_bias, attributes);
    if (status == dnnl_success) status = dnnl_primitive_create(&p->primitive, description);
    for (int i = 0; i < 4 && status == dnnl_success; i++)
        if (i != BIAS || has_bias) status = make_memory(&p->memory[i], view(&descriptors[i]));
    if (status == dnnl_success) {
        descriptor_view scratch = dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
        p->scratch_bytes = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
        if (p->scratch_bytes) status = make_memory(&p->memory[SCRATCHPAD], scratch);
    }
    if (description) dnnl_primitive_desc_destroy(description);
    if (attributes) dnnl_primitive_attr_destroy(attributes);
    for (int i = 0; i < 4; i++) descriptor_free(&descriptors[i]);
    return status;
}

static uint64_t hash(const shims_gemm_shape *shape) {
    uint64_t words[sizeof *shape / 8], h = 0x9e3779b97f4a7c15u;
    memcpy(words, shape, sizeof words);
    for (size_t i = 0; i < sizeof words / 8; i++) h = (h ^ words[i]) * 0xff51afd7ed558ccdu, h ^= h >> 32;
    return h;
}

static int32_t find_product(thread_products *t, const shims_gemm_shape *shape, product **out) {
    if (t->count >= MOST_PRODUCTS) products_clear(t);
    uint64_t slot = hash(shape) & (SLOTS - 1);
    while (t->slots[slot]) {
        if (memcmp(&t->slots[slot]->shape, shape, sizeof *shape) == 0) {
            *out = t->slots[slot];
            return SHIMS_GEMM_OK;
        }
        slot = (slot + 1) & (SLOTS - 1);
    }
    product *p = calloc(1, sizeof *p);
    if (!p) return SHIMS_GEMM_OUT_OF_MEMORY;
    p->shape = *shape;
    dnnl_status_t status = fill_product(p);
    if (status != dnnl_success) {
        product_free(p);
        return status == dnnl_out_of_memory ? SHIMS_GEMM_OUT_OF_MEMORY : SHIMS_GEMM_FAILED;
    }
    t->slots[slot] = p;
    t->count++;
    *out = p;
    return SHIMS_GEMM_OK;
}

static int32_t reserve_scratch(thread_products *t, size_t bytes) {
    if (bytes <= t->scratch_bytes) return SHIMS_GEMM_OK;
    free(t->scratch);
    t->scratch_bytes = 0;
    if (posix_memalign(&t->scratch, 4096, bytes) != 0) {
        t->scratch = NULL;
        return SHIMS_GEMM_OUT_OF_MEMORY;
    }
    t->scratch_bytes = bytes;
    return SHIMS_GEMM_OK;
}

int32_t shims_gemm(const shims_gemm_shape *shape, const float *a, const float *b, float *c, const float *bias) {
    thread_products *t = products_of_thread();
    if (!t) return SHIMS_GEMM_OUT_OF_MEMORY;
    product *p;
    int32_t status = find_product(t, shape, &p);
    if (status == SHIMS_GEMM_OK) status = reserve_scratch(t, p->scratch_bytes);
    if (status != SHIMS_GEMM_OK) return status;

    static const int names[ARGUMENTS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST,
                                         DNNL_ARG_SCRATCHPAD};
    void *addresses[ARGUMENTS] = {(void *)a, (void *)b, (void *)bias, c, t->scratch};
    dnnl_exec_arg_t arguments[ARGUMENTS];
    int count = 0;
    for (int i = 0; i < ARGUMENTS; i++) {
        if (!p->memory[i]) continue;
        if (dnnl_memory_set_data_handle(p->memory[i], addresses[i]) != dnnl_success) return SHIMS_GEMM_FAILED;
        arguments[count].arg = names[i];
        arguments[count++].memory = p->memory[i];
    }
    return dnnl_primitive_execute(p->primitive, t->stream, count, arguments) == dnnl_success ? SHIMS_GEMM_OK
                                                                                             : SHIMS_GEMM_FAILED;
}
