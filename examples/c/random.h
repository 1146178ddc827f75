/*
 * random.h - SplitMix64 (Steele, Lea and Flood, 2014): integers alone, so the same numbers in any language
 */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* What a seed is used for; each use has its own sequence, so that one does not shift another. */
enum random_use { RANDOM_WEIGHTS, RANDOM_BATCHES, RANDOM_SAMPLE };

static uint64_t random_start(long long seed, enum random_use use)
{
    uint64_t state = (uint64_t)seed;

    return random_next(&state) + (uint64_t)use;
}

#endif /* RANDOM_H */
