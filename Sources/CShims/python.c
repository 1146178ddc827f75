#define _GNU_SOURCE
#include <dlfcn.h>
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
