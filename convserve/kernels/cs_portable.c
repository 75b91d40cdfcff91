/* The portable kernels, in 4 lanes that every target has, and the choice between the tables. */
#include <string.h>

#include "cs_kernels.h"

#define CS_ISA portable
#define CS_LANES 4
#define CS_MR 3
#define CS_TILE_PANELS 1
#define CS_ROW_PANELS 4
#define cs_fma(a, b, c) ((a) * (b) + (c))
#define cs_splat(x) splat(x)
#define cs_at_least(low, x) at_least(low, x)
#define cs_sqrt(x) roots(x)

typedef float four __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) four splat(float x)
{
    return (four){x, x, x, x};
}

static inline __attribute__((always_inline)) four roots(four x)
{
    return (four){__builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]), __builtin_sqrtf(x[3])};
}

static inline __attribute__((always_inline)) four at_least(four low, four x)
{
    typedef int32_t mask __attribute__((vector_size(16)));
    const mask less = x < low;
    return (four)((less & (mask)low) | (~less & (mask)x));
}

static inline __attribute__((always_inline)) four first_of(const float *p, int64_t count)
{
    return (four){count > 0 ? p[0] : 0.0f, count > 1 ? p[1] : 0.0f, count > 2 ? p[2] : 0.0f, count > 3 ? p[3] : 0.0f};
}

static inline __attribute__((always_inline)) void to_first(float *p, four v, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        p[i] = v[i];
}

typedef int32_t four_bits __attribute__((vector_size(16)));
typedef uint16_t eight_halves __attribute__((vector_size(16)));

/* four stored halves, each the upper half of a lane */
static inline __attribute__((always_inline)) four_bits upper_halves(const char *p)
{
    const eight_halves zeros = {0}, interleaved = {0, 8, 1, 9, 2, 10, 3, 11};
    eight_halves stored = {0};
    memcpy(&stored, p, 8);
    return (four_bits)__builtin_shuffle(zeros, stored, interleaved);
}

/* A float16's exponent is biased by 112 less; a denormal reaches float32's place by an exact subtraction. */
static inline __attribute__((always_inline)) four four_of_f16(const char *p)
{
    const four_bits halves = upper_halves(p);
    const four_bits sign = halves & INT32_MIN, rest = (halves & 0x7fff0000) >> 3;
    const four_bits infinite = rest > 0x0f7fffff, denormal = rest < 0x00800000;
    const four_bits moved = rest + (112 << 23) + (infinite & 112 << 23);
    const four small = (four)(rest + (113 << 23)) - 0x1p-14f;
    return (four)(sign | (denormal & (four_bits)small) | (~denormal & moved));
}

#define cs_load_f16(p) four_of_f16(p)
#define cs_load_bf16(p) ((four)upper_halves(p))
#define cs_load_first(p, count) first_of(p, count)
#define cs_store_first(p, v, count) to_first(p, v, count)
#include "cs_body.h"

const struct cs_kernels *cs_kernels_named(const char *isa)
{
    if (!strcmp(isa, "portable"))
        return &cs_kernels_portable;
#ifdef __x86_64__
    __builtin_cpu_init(); /* reads cpuid and xgetbv once */
    if (!strcmp(isa, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &cs_kernels_avx2;
    if (!strcmp(isa, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &cs_kernels_avx512;
#endif
    return 0;
}
