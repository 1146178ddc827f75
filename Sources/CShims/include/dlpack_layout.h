/*
 * The structs of DLPack, version 1.1 (github.com/dmlc/dlpack), as a reader and a writer of them needs: those without a
 * version, of DLPack 0.x, and those of ABI major version 1, whose later minor versions only add element types and
 * devices. Names are our own, so that a program can include dlpack.h as well.
 */
#ifndef DLPACK_LAYOUT_H
#define DLPACK_LAYOUT_H

#include <stdint.h>

enum { SHIMS_DLPACK_MAJOR = 1, SHIMS_DLPACK_MINOR = 1 };
enum { SHIMS_DLPACK_CPU = 1 };
enum { SHIMS_DLPACK_INT = 0, SHIMS_DLPACK_FLOAT = 2, SHIMS_DLPACK_BFLOAT = 4 };
enum { SHIMS_DLPACK_READ_ONLY = 1, SHIMS_DLPACK_IS_COPIED = 2 };

typedef struct {
    void *_Nullable data;
    int32_t device_type;
    int32_t device_id;
    int32_t rank;
    uint8_t type_code;
    uint8_t type_bits;
    uint16_t type_lanes;
    int64_t *_Nullable shape;
    int64_t *_Nullable strides; /* in elements; NULL is row-major without gaps */
    uint64_t offset_bytes;
} shims_dlpack_tensor;

/* DLManagedTensor */
typedef struct shims_dlpack_unversioned {
    shims_dlpack_tensor tensor;
    void *_Nullable context;
    void (*_Nullable deleter)(struct shims_dlpack_unversioned *_Nullable self);
} shims_dlpack_unversioned;

/* DLManagedTensorVersioned: of another major version, only the first four fields are where they are here. */
typedef struct shims_dlpack_versioned {
    uint32_t major;
    uint32_t minor;
    void *_Nullable context;
    void (*_Nullable deleter)(struct shims_dlpack_versioned *_Nullable self);
    uint64_t flags;
    shims_dlpack_tensor tensor;
} shims_dlpack_versioned;

#ifndef __cplusplus
_Static_assert(sizeof(void *) != 8 || sizeof(shims_dlpack_tensor) == 48, "DLTensor");
_Static_assert(sizeof(void *) != 8 || sizeof(shims_dlpack_unversioned) == 64, "DLManagedTensor");
_Static_assert(sizeof(void *) != 8 || sizeof(shims_dlpack_versioned) == 80, "DLManagedTensorVersioned");
#endif

#endif
