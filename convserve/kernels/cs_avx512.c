/* The AVX-512 kernels: 16 lanes, tiles of 14 pixels x 32 channels (28 accumulators of 32 registers). */
#include "cs_kernels.h"
#ifdef __x86_64__
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,avx2,prefer-vector-width=512")
#include <immintrin.h>

#define CS_ISA avx512
#define CS_LANES 16
#define CS_MR 14
#define CS_TILE_PANELS 2
#define CS_ROW_PANELS 4
#define cs_fma(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define cs_splat(x) ((vec)_mm512_set1_ps(x))
#define cs_at_least(low, x) ((vec)_mm512_max_ps((__m512)(low), (__m512)(x)))
#define cs_sqrt(x) ((vec)_mm512_sqrt_ps((__m512)(x)))
#define cs_first(count) ((__mmask16)((1u << (count)) - 1))
#define cs_load_first(p, count) ((vec)_mm512_maskz_loadu_ps(cs_first(count), p))
#define cs_store_first(p, v, count) _mm512_mask_storeu_ps(p, cs_first(count), (__m512)(v))
#define cs_halves(p) _mm256_loadu_si256((const __m256i *)(p))
#define cs_load_f16(p) ((vec)_mm512_cvtph_ps(cs_halves(p)))
#define cs_load_bf16(p) ((vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(cs_halves(p)), 16))
#include "cs_body.h"
#endif
