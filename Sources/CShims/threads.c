#define _GNU_SOURCE
#include "shims.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sched.h>
#include <stdio.h>

static _Thread_local char error_text[512];
static _Thread_local void *slots[SHIMS_SLOT_COUNT];

void shims_set_error(const char *sentence) { snprintf(error_text, sizeof error_text, "%s", sentence); }

const char *shims_last_error(void) { return error_text; }

void *shims_thread_slot(int32_t slot) { return slots[slot]; }

void shims_set_thread_slot(int32_t slot, void *value) { slots[slot] = value; }

int32_t shims_available_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int count = CPU_COUNT(&set);
    return count > 0 ? count : 1;
}

void shims_pause(void) { _mm_pause(); }

/* All exceptions masked, round to nearest, FTZ and DAZ. */
#define COMPUTE_MXCSR 0x9fc0u

uint32_t shims_enter_compute(void) {
    const uint32_t mode = _mm_getcsr();
    if (mode != COMPUTE_MXCSR) _mm_setcsr(COMPUTE_MXCSR);
    return mode;
}

void shims_leave_compute(uint32_t mode) {
    if (mode != COMPUTE_MXCSR) _mm_setcsr(mode);
}

/* The features of a level are those of the psABI, and the operating system must save the registers. */
int32_t shims_cpu_level(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned v3_leaf1 = bit_FMA | bit_MOVBE | bit_OSXSAVE | bit_AVX | bit_F16C;
    if ((c & v3_leaf1) != v3_leaf1) return 0;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x06) != 0x06) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const unsigned v3_leaf7 = bit_AVX2 | bit_BMI | bit_BMI2;
    if ((b & v3_leaf7) != v3_leaf7) return 0;
    const unsigned v4_leaf7 = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
    if ((b & v4_leaf7) != v4_leaf7 || (low & 0xe6) != 0xe6) return 1;
    const unsigned avx512_bf16 = 1u << 5;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx512_bf16) ? 3 : 2;
}
