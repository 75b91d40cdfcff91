/* The AVX2 kernels with FMA and F16C: 8 lanes, tiles of 6 pixels x 16 channels (12 accumulators of 16 registers). */
#include "cs_kernels.h"
#ifdef __x86_64__
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#define CS_ISA avx2
#define CS_LANES 8
#define CS_MR 6
#define CS_TILE_PANELS 1
#define CS_ROW_PANELS 4
#define cs_fma(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define cs_splat(x) ((vec)_mm256_set1_ps(x))
#define cs_at_least(low, x) ((vec)_mm256_max_ps((__m256)(low), (__m256)(x)))
#define cs_sqrt(x) ((vec)_mm256_sqrt_ps((__m256)(x)))
#define cs_first(count) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define cs_load_first(p, count) ((vec)_mm256_maskload_ps(p, cs_first(count)))
#define cs_store_first(p, v, count) _mm256_maskstore_ps(p, cs_first(count), (__m256)(v))
#define cs_halves(p) _mm_loadu_si128((const __m128i *)(p))
#define cs_load_f16(p) ((vec)_mm256_cvtph_ps(cs_halves(p)))
#define cs_load_bf16(p) ((vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(cs_halves(p)), 16))
#include "cs_body.h"
#endif
