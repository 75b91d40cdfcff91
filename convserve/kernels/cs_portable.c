/* The portable kernels, in 4 lanes that every target has, and the choice between the tables. */
#include "cs_kernels.h"

#define CS_ISA portable
#define CS_LANES 4
#define CS_MR 3
#define CS_TILE_PANELS 1
#define cs_fma(a, b, c) ((a) * (b) + (c))
#define cs_splat(x) splat(x)
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

static inline __attribute__((always_inline)) four first_of(const float *p, int64_t count)
{
    return (four){count > 0 ? p[0] : 0.0f, count > 1 ? p[1] : 0.0f, count > 2 ? p[2] : 0.0f, count > 3 ? p[3] : 0.0f};
}

static inline __attribute__((always_inline)) void to_first(float *p, four v, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        p[i] = v[i];
}

#define cs_load_first(p, count) first_of(p, count)
#define cs_store_first(p, v, count) to_first(p, v, count)
#include "cs_body.h"

const struct cs_kernels *cs_kernels_named(const char *isa)
{
    if (!strcmp(isa, "portable"))
        return &cs_kernels_portable;
#ifdef __x86_64__
    __builtin_cpu_init(); /* reads cpuid and xgetbv once */
    if (!strcmp(isa, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &cs_kernels_avx2;
    if (!strcmp(isa, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &cs_kernels_avx512;
#endif
    return 0;
}
