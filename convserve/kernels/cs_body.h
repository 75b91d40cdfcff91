/* The micro-kernels and vector loops, written once; each cs_<isa>.c includes this after defining
 *   CS_ISA (name), CS_LANES (floats of a vector), CS_MR, CS_TILE_PANELS, and cs_fma, cs_splat, cs_sqrt on vectors;
 *   cs_load_first(p, count) and cs_store_first(p, v, count) touch the first count <= CS_LANES floats, the rest is 0.
 *
 * A fused multiply-add happens only through cs_fma, and every sum has one fixed order that does not
 * depend on CS_LANES: so all instruction sets with FMA give the same bits.
 */
#include <string.h>

#include "cs_kernels.h"

typedef float vec __attribute__((vector_size(4 * CS_LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * CS_LANES)));

#define CS_PANEL_VECS (CS_PANEL / CS_LANES)
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

INLINE vec load_first(const float *p, int64_t count)
{
    return cs_load_first(p, count);
}

INLINE void store_first(float *p, vec v, int64_t count)
{
    cs_store_first(p, v, count);
}

INLINE vec blend(ivec mask, vec yes, vec no)
{
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

/* x and-not (x < 0), so that NaN stays NaN */
INLINE vec positive(vec x)
{
    return (vec)((ivec)x & ~(ivec)(x < cs_splat(0.0f)));
}

/* ---- gemm ---------------------------------------------------------------------------------- */

INLINE void gemm_tile(const struct cs_gemm_params *g, const int m, const int panels)
{
    enum { most = CS_TILE_PANELS * CS_PANEL_VECS };
    const int vecs = panels * CS_PANEL_VECS;
    vec acc[CS_MR][most];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 16
        for (int j = 0; j < vecs; j++)
            acc[i][j] = load(g->bias + j * CS_LANES);

    const float *b = g->b;
    const int64_t panel_pitch = g->panel_pitch;
    for (int64_t s = 0; s < g->segments; s++) {
        const float *const *a = g->a + s * CS_MR_MAX;
        const int64_t length = g->segment_length;
        for (int64_t t = 0; t < length; t++) {
            vec bv[most];
#pragma GCC unroll 16
            for (int j = 0; j < vecs; j++)
                bv[j] = load(b + (j / CS_PANEL_VECS) * panel_pitch + (j % CS_PANEL_VECS) * CS_LANES);
#pragma GCC unroll 16
            for (int i = 0; i < m; i++) {
                const vec av = cs_splat(a[i][t]);
#pragma GCC unroll 16
                for (int j = 0; j < vecs; j++)
                    acc[i][j] = cs_fma(av, bv[j], acc[i][j]);
            }
            b += CS_PANEL;
        }
    }

#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
        float *c = g->c[i] + g->channel;
        const float *residual = g->residual ? g->residual[i] + g->channel : 0;
#pragma GCC unroll 16
        for (int j = 0; j < vecs; j++) {
            const int64_t left = g->n - j * CS_LANES;
            if (left <= 0)
                break;
            vec v = acc[i][j];
            if (left >= CS_LANES) {
                if (residual)
                    v += load(residual + j * CS_LANES);
                if (g->relu)
                    v = positive(v);
                store(c + j * CS_LANES, v);
            } else {
                if (residual)
                    v += load_first(residual + j * CS_LANES, left);
                if (g->relu)
                    v = positive(v);
                store_first(c + j * CS_LANES, v, left);
            }
        }
    }
}

#define GEMM_TILE(m, panels)                                                                          \
    static void cs_f32_gemm_ukernel_##m##x##panels##p(const struct cs_gemm_params *g)                 \
    {                                                                                                 \
        gemm_tile(g, m, panels);                                                                      \
    }
#if CS_TILE_PANELS == 2
#define GEMM_ROW(m) GEMM_TILE(m, 1) GEMM_TILE(m, 2)
#define GEMM_ENTRY(m) {cs_f32_gemm_ukernel_##m##x1p, cs_f32_gemm_ukernel_##m##x2p}
#else
#define GEMM_ROW(m) GEMM_TILE(m, 1)
#define GEMM_ENTRY(m) {cs_f32_gemm_ukernel_##m##x1p}
#endif

GEMM_ROW(1)
GEMM_ROW(2)
GEMM_ROW(3)
#if CS_MR >= 6
GEMM_ROW(4)
GEMM_ROW(5)
GEMM_ROW(6)
#endif
#if CS_MR >= 14
GEMM_ROW(7)
GEMM_ROW(8)
GEMM_ROW(9)
GEMM_ROW(10)
GEMM_ROW(11)
GEMM_ROW(12)
GEMM_ROW(13)
GEMM_ROW(14)
#endif

static void (*const gemm_tiles[CS_MR][CS_TILE_PANELS])(const struct cs_gemm_params *) = {
    GEMM_ENTRY(1), GEMM_ENTRY(2), GEMM_ENTRY(3),
#if CS_MR >= 6
    GEMM_ENTRY(4), GEMM_ENTRY(5), GEMM_ENTRY(6),
#endif
#if CS_MR >= 14
    GEMM_ENTRY(7), GEMM_ENTRY(8), GEMM_ENTRY(9), GEMM_ENTRY(10),
    GEMM_ENTRY(11), GEMM_ENTRY(12), GEMM_ENTRY(13), GEMM_ENTRY(14),
#endif
};

static void gemm(const struct cs_gemm_params *g, int m)
{
    gemm_tiles[m - 1][(g->n - 1) / CS_PANEL](g);
}

/* ---- one filter a channel, and pooling: taps outside, channels across the lanes -------------- */

static void depthwise(int64_t channels, int64_t taps, const float *const *in, const float *weights, const float *bias,
                      float *out, int first, int last_relu)
{
    const float *start = first ? bias : out;
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c;
        if (left >= CS_LANES) {
            vec sum = load(start + c);
            for (int64_t t = 0; t < taps; t++)
                sum = cs_fma(load(in[t] + c), load(weights + t * channels + c), sum);
            store(out + c, last_relu ? positive(sum) : sum);
        } else {
            vec sum = load_first(start + c, left);
            for (int64_t t = 0; t < taps; t++)
                sum = cs_fma(load_first(in[t] + c, left), load_first(weights + t * channels + c, left), sum);
            store_first(out + c, last_relu ? positive(sum) : sum, left);
        }
    }
}

/* the larger one; a NaN on either side comes out */
INLINE vec larger(vec kept, vec x)
{
    return blend((x > kept) | (x != x), x, kept);
}

static void max_pool(int64_t channels, int64_t taps, const float *const *in, float *out, int first)
{
    const float *start = first ? in[0] : out;
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c;
        if (left >= CS_LANES) {
            vec most = load(start + c);
            for (int64_t t = first; t < taps; t++)
                most = larger(most, load(in[t] + c));
            store(out + c, most);
        } else {
            vec most = load_first(start + c, left);
            for (int64_t t = first; t < taps; t++)
                most = larger(most, load_first(in[t] + c, left));
            store_first(out + c, most, left);
        }
    }
}

static void average_pool(int64_t channels, int64_t taps, const float *const *in, float *out, int first, float divisor)
{
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c;
        if (left >= CS_LANES) {
            vec sum = first ? cs_splat(0.0f) : load(out + c);
            for (int64_t t = 0; t < taps; t++)
                sum += load(in[t] + c);
            store(out + c, divisor != 0.0f ? sum / cs_splat(divisor) : sum);
        } else {
            vec sum = first ? cs_splat(0.0f) : load_first(out + c, left);
            for (int64_t t = 0; t < taps; t++)
                sum += load_first(in[t] + c, left);
            store_first(out + c, divisor != 0.0f ? sum / cs_splat(divisor) : sum, left);
        }
    }
}

/* ---- elementwise ----------------------------------------------------------------------------- */

#define LOOP(count, vector, tail)                                                                     \
    int64_t i = 0;                                                                                    \
    for (; i + CS_LANES <= (count); i += CS_LANES)                                                    \
        store(out + i, vector);                                                                       \
    if (i < (count))                                                                                  \
        store_first(out + i, tail, (count) - i);

static void relu(int64_t count, const float *in, float *out)
{
    LOOP(count, positive(load(in + i)), positive(load_first(in + i, count - i)))
}

INLINE vec activated(vec x, int relu)
{
    return relu ? positive(x) : x;
}

static void affine(int64_t channels, const float *in, const float *scale, const float *shift, float *out, int relu)
{
    LOOP(channels, activated(cs_fma(load(in + i), load(scale + i), load(shift + i)), relu),
         activated(cs_fma(load_first(in + i, channels - i), load_first(scale + i, channels - i),
                          load_first(shift + i, channels - i)),
                   relu))
}

static void add(int64_t count, const float *a, const float *b, float *out, int relu)
{
    LOOP(count, activated(load(a + i) + load(b + i), relu),
         activated(load_first(a + i, count - i) + load_first(b + i, count - i), relu))
}

static void mul(int64_t count, const float *a, const float *b, float *out, int relu)
{
    LOOP(count, activated(load(a + i) * load(b + i), relu),
         activated(load_first(a + i, count - i) * load_first(b + i, count - i), relu))
}

#include "cs_functions.h"
#include "cs_winograd.h"

#define CS_TABLE_NAME_(isa) cs_kernels_##isa
#define CS_TABLE_NAME(isa) CS_TABLE_NAME_(isa)
#define CS_TEXT_(isa) #isa
#define CS_TEXT(isa) CS_TEXT_(isa)

const struct cs_kernels CS_TABLE_NAME(CS_ISA) = {
    .isa = CS_TEXT(CS_ISA),
    .mr = CS_MR,
    .panels = CS_TILE_PANELS,
    .gemm = gemm,
    .depthwise = depthwise,
    .max_pool = max_pool,
    .average_pool = average_pool,
    .relu = relu,
    .affine = affine,
    .add = add,
    .mul = mul,
    .lrn = lrn,
    .softmax = softmax,
    .winograd_input = winograd_input,
    .winograd_output = winograd_output,
};
