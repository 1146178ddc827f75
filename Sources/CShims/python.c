#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include "dlpack_layout.h"
#include "shims.h"

/*
 * What an interpreter in the process calls back. Its functions are looked up, so that nothing links to it, and none of
 * this is Python code: it also runs while an exception is on its way, which Python code would lose.
 */

typedef int (*is_initialized_fn)(void);
typedef int (*ensure_fn)(void);
typedef void (*release_fn)(int);
typedef void (*object_fn)(void *);
typedef int (*is_valid_fn)(void *, const char *);
typedef void *(*get_pointer_fn)(void *, const char *);
typedef char *(*get_item_fn)(void *, ptrdiff_t);

/* What follows the head of a PyObject in an array of numpy: extension modules are compiled to read it so. */
typedef struct {
    void *data;
    int rank;
    ptrdiff_t *shape;
    ptrdiff_t *strides;
    void *base;
    void *dtype;
    int flags;
} numpy_array;

/* NPY_ARRAY_C_CONTIGUOUS and NPY_ARRAY_ALIGNED. */
#define READABLE 0x101

void shims_release_python_object(void *data, void *object) {
    is_initialized_fn is_initialized = (is_initialized_fn)dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    ensure_fn ensure = (ensure_fn)dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    release_fn release = (release_fn)dlsym(RTLD_DEFAULT, "PyGILState_Release");
    object_fn drop = (object_fn)dlsym(RTLD_DEFAULT, "Py_DecRef");
    int state;
    (void)data;
    if (!object || !is_initialized || !ensure || !release || !drop || !is_initialized()) return;
    state = ensure();
    drop(object);
    release(state);
}

void shims_destroy_python_capsule(void *capsule) {
    is_valid_fn is_valid = (is_valid_fn)dlsym(RTLD_DEFAULT, "PyCapsule_IsValid");
    get_pointer_fn get_pointer = (get_pointer_fn)dlsym(RTLD_DEFAULT, "PyCapsule_GetPointer");
    if (!capsule || !is_valid || !get_pointer) return;
    if (is_valid(capsule, "dltensor_versioned")) {
        shims_dlpack_versioned *managed = get_pointer(capsule, "dltensor_versioned");
        if (managed->deleter) managed->deleter(managed);
    } else if (is_valid(capsule, "dltensor")) {
        shims_dlpack_unversioned *managed = get_pointer(capsule, "dltensor");
        if (managed->deleter) managed->deleter(managed);
    }
}

int64_t shims_python_array_addresses(const void **addresses, void *arrays, int64_t count, const int64_t *shapes,
                                     const void *dtype, const void *type, int64_t head_bytes) {
    get_item_fn get_item = (get_item_fn)dlsym(RTLD_DEFAULT, "PyTuple_GetItem");
    const char *none = dlsym(RTLD_DEFAULT, "_Py_NoneStruct");
    int64_t i;
    if (!addresses || !arrays || !shapes || !get_item || !none) return 0;
    for (i = 0; i < count; i++) {
        const char *object = get_item(arrays, (ptrdiff_t)i);
        const int64_t rank = *shapes++;
        addresses[i] = NULL;
        if (!object) return i;
        if (object != none) {
            const numpy_array *array = (const numpy_array *)(object + head_bytes);
            int64_t axis;
            /* The type is the last word of the head. */
            if (((const void *const *)array)[-1] != type || array->dtype != dtype || array->rank != rank ||
                (array->flags & READABLE) != READABLE)
                return i;
            for (axis = 0; axis < rank; axis++)
                if (array->shape[axis] != shapes[axis]) return i;
            addresses[i] = array->data;
        }
        shapes += rank;
    }
    return count;
}
