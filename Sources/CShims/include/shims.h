/*
 * What Swift cannot say: thread-local storage, the floating-point mode and CPUID.
 */
#ifndef SHIMS_H
#define SHIMS_H

#include <stdint.h>

/* ------ errors ----------------------------------------------------------------------------------------- */

/* Copies a sentence into this thread's error text, cut to its capacity. */
void shims_set_error(const char *_Nonnull sentence);
const char *_Nonnull shims_last_error(void);

/* ------ threads ---------------------------------------------------------------------------------------- */

/* Per-thread pointers, null at first. */
enum {
    SHIMS_SLOT_SCOPE,
    SHIMS_SLOT_RECORDING_OFF,
    SHIMS_SLOT_COMPUTE_DTYPE,
    SHIMS_SLOT_TRASH,
    SHIMS_SLOT_IN_TILE,
    SHIMS_SLOT_COUNT
};
void *_Nullable shims_thread_slot(int32_t slot);
void shims_set_thread_slot(int32_t slot, void *_Nullable value);

/* CPUs in the affinity mask of this process, at least 1. */
int32_t shims_available_cpus(void);
void shims_pause(void);

/* ------ Python ----------------------------------------------------------------------------------------- */

/* See ga_python_release, ga_python_capsule_destroy and ga_python_array_addresses. */
void shims_release_python_object(void *_Nullable data, void *_Nullable object);
void shims_destroy_python_capsule(void *_Nullable capsule);
int64_t shims_python_array_addresses(
    const void *_Nullable *_Nullable addresses, void *_Nullable arrays, int64_t count, const int64_t *_Nullable shapes,
    const void *_Nullable dtype, const void *_Nullable type, int64_t head_bytes);

/* ------ compute mode ------------------------------------------------------------------------------------ */

/*
 * What a kernel runs under: default rounding, denormals flushed, exceptions masked. Enter returns what leave needs
 * to bring the thread's own mode back.
 */
uint32_t shims_enter_compute(void);
void shims_leave_compute(uint32_t mode);

/* 0 baseline, 1 AVX2 (x86-64-v3), 2 AVX-512 (x86-64-v4), 3 with its dot product of bfloat16. */
int32_t shims_cpu_level(void);

#endif
