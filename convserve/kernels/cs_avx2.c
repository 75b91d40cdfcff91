/* The AVX2 kernels with FMA: 8 lanes, tiles of 6 pixels x 16 channels (12 accumulators of 16 registers). */
#include "cs_kernels.h"
#ifdef __x86_64__
#pragma GCC target("avx2,fma")
#include <immintrin.h>

#define CS_ISA avx2
#define CS_LANES 8
#define CS_MR 6
#define CS_TILE_PANELS 1
#define cs_fma(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define cs_splat(x) ((vec)_mm256_set1_ps(x))
#define cs_sqrt(x) ((vec)_mm256_sqrt_ps((__m256)(x)))
#include "cs_body.h"
#endif
