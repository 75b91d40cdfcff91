/* The micro-kernels and vector loops, written once; each cs_<isa>.c includes this after defining
 *   CS_ISA (name), CS_LANES (floats of a vector), CS_MR, CS_TILE_PANELS, CS_ROW_PANELS, and on vectors
 *   cs_fma, cs_splat, cs_sqrt;
 *   cs_at_least(low, x) is x where it is not less than low, so that NaN stays NaN and -0 stays -0;
 *   cs_load_first(p, count) and cs_store_first(p, v, count) touch the first count <= CS_LANES floats, the rest is 0;
 *   cs_load_f16(p) and cs_load_bf16(p) widen CS_LANES stored values.
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

INLINE vec positive(vec x)
{
    return cs_at_least(cs_splat(0.0f), x);
}

/* ---- gemm ---------------------------------------------------------------------------------- */

INLINE vec load_weights(const char *p, const enum cs_type type)
{
    if (type == CS_F16)
        return cs_load_f16(p);
    if (type == CS_BF16)
        return cs_load_bf16(p);
    return load((const float *)p);
}

INLINE void gemm_tile(const struct cs_gemm_params *g, const enum cs_type type, const int m, const int panels)
{
    enum { most = CS_ROW_PANELS * CS_PANEL_VECS };
    const int vecs = panels * CS_PANEL_VECS;
    const int64_t size = type == CS_F32 ? 4 : 2;
    vec acc[CS_MR][most];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 16
        for (int j = 0; j < vecs; j++)
            acc[i][j] = load(g->bias + j * CS_LANES);

    const char *b = g->b;
    const int64_t panel_pitch = g->panel_pitch;
    for (int64_t s = 0; s < g->segments; s++) {
        const float *const *a = g->a + s * CS_MR_MAX;
        const int64_t length = g->segment_length;
        for (int64_t t = 0; t < length; t++) {
            vec bv[most];
#pragma GCC unroll 16
            for (int j = 0; j < vecs; j++)
                bv[j] = load_weights(
                    b + ((j / CS_PANEL_VECS) * panel_pitch + (j % CS_PANEL_VECS) * CS_LANES) * size, type);
#pragma GCC unroll 16
            for (int i = 0; i < m; i++) {
                const vec av = cs_splat(a[i][t]);
#pragma GCC unroll 16
                for (int j = 0; j < vecs; j++)
                    acc[i][j] = cs_fma(av, bv[j], acc[i][j]);
            }
            b += CS_PANEL * size;
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

#define GEMM_TILE(type, m, panels)                                                                    \
    static void cs_##type##_gemm_ukernel_##m##x##panels##p(const struct cs_gemm_params *g)            \
    {                                                                                                 \
        gemm_tile(g, CS_##type, m, panels);                                                           \
    }
#if CS_TILE_PANELS == 2
#define GEMM_ROW(type, m) GEMM_TILE(type, m, 1) GEMM_TILE(type, m, 2)
#define GEMM_ENTRY(type, m) [m - 1] = {cs_##type##_gemm_ukernel_##m##x1p, cs_##type##_gemm_ukernel_##m##x2p},
#else
#define GEMM_ROW(type, m) GEMM_TILE(type, m, 1)
#define GEMM_ENTRY(type, m) [m - 1] = {cs_##type##_gemm_ukernel_##m##x1p},
#endif

#if CS_MR == 14
#define EACH_M(f, type)                                                                               \
    f(type, 2) f(type, 3) f(type, 4) f(type, 5) f(type, 6) f(type, 7) f(type, 8) f(type, 9)           \
    f(type, 10) f(type, 11) f(type, 12) f(type, 13) f(type, 14)
#elif CS_MR == 6
#define EACH_M(f, type) f(type, 2) f(type, 3) f(type, 4) f(type, 5) f(type, 6)
#else
#define EACH_M(f, type) f(type, 2) f(type, 3)
#endif

/* A single pixel has one chain of sums a vector, so it takes more panels at a time. */
#if CS_ROW_PANELS != 4
#error "the tiles of one pixel are made for 1 to 4 panels"
#endif
#define GEMM_TILES(type)                                                                              \
    EACH_M(GEMM_ROW, type) GEMM_TILE(type, 1, 1) GEMM_TILE(type, 1, 2) GEMM_TILE(type, 1, 3) GEMM_TILE(type, 1, 4)
#define GEMM_TABLE(type)                                                                              \
    {                                                                                                 \
        EACH_M(GEMM_ENTRY, type)[0] = {cs_##type##_gemm_ukernel_1x1p, cs_##type##_gemm_ukernel_1x2p,  \
                                       cs_##type##_gemm_ukernel_1x3p, cs_##type##_gemm_ukernel_1x4p}, \
    }

GEMM_TILES(F32)
GEMM_TILES(F16)
GEMM_TILES(BF16)

static void (*const gemm_tiles[CS_TYPES][CS_MR][CS_ROW_PANELS])(const struct cs_gemm_params *) = {
    [CS_F32] = GEMM_TABLE(F32),
    [CS_F16] = GEMM_TABLE(F16),
    [CS_BF16] = GEMM_TABLE(BF16),
};

static void gemm(const struct cs_gemm_params *g, int m)
{
    gemm_tiles[g->b_type][m - 1][(g->n - 1) / CS_PANEL](g);
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

static void weighted_sum(int64_t channels, int64_t taps, const float *const *in, const float *weights, float *out,
                         int first)
{
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c;
        if (left >= CS_LANES) {
            vec sum = first ? cs_splat(0.0f) : load(out + c);
            for (int64_t t = 0; t < taps; t++)
                sum = cs_fma(load(in[t] + c), cs_splat(weights[t]), sum);
            store(out + c, sum);
        } else {
            vec sum = first ? cs_splat(0.0f) : load_first(out + c, left);
            for (int64_t t = 0; t < taps; t++)
                sum = cs_fma(load_first(in[t] + c, left), cs_splat(weights[t]), sum);
            store_first(out + c, sum, left);
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

#define COMBINE(operation)                                                                            \
    for (int64_t i = 0; i < count; i += CS_LANES) {                                                   \
        const int64_t left = count - i;                                                               \
        const vec x = left < CS_LANES ? load_first(a + i, left) : load(a + i);                        \
        const vec y = left < CS_LANES ? load_first(b + i, left) : load(b + i);                        \
        const vec z = activated(operation, relu);                                                     \
        if (left < CS_LANES)                                                                          \
            store_first(out + i, z, left);                                                            \
        else                                                                                          \
            store(out + i, z);                                                                        \
    }                                                                                                 \
    return;

static void combine(enum cs_combination kind, int64_t count, const float *a, const float *b, float *out, int relu)
{
    switch (kind) {
    case CS_ADD:
        COMBINE(x + y)
    case CS_SUB:
        COMBINE(x - y)
    case CS_MUL:
        COMBINE(x * y)
    case CS_DIV:
        COMBINE(x / y)
    case CS_MAX:
        COMBINE(larger(x, y))
    case CS_MIN:
        COMBINE(-larger(-x, -y))
    }
}

static void multiply_add(int64_t n, int64_t length, const float *x, const float *weights, float *out)
{
    for (int64_t j = 0; j < n; j += CS_LANES) {
        const int64_t left = n - j < CS_LANES ? n - j : CS_LANES;
        vec sum = load_first(out + j, left);
        for (int64_t t = 0; t < length; t++) {
            const float *w = weights + t * n + j;
            sum = cs_fma(cs_splat(x[t]), left == CS_LANES ? load(w) : load_first(w, left), sum);
        }
        store_first(out + j, sum, left);
    }
}

INLINE void interleave_streams(int64_t count, const int streams, const AnyFloat *in, int64_t pitch, float scale,
                              float *restrict out)
{
    for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++)
            out[i * streams + s] = scale * in[s * pitch + i];
}

/* a constant number of streams lets the compiler shuffle whole vectors */
static void interleave(int64_t count, int64_t streams, const AnyFloat *in, int64_t pitch, float scale, float *out)
{
    switch (streams) {
    case 2:
        interleave_streams(count, 2, in, pitch, scale, out);
        return;
    case 3:
        interleave_streams(count, 3, in, pitch, scale, out);
        return;
    case 4:
        interleave_streams(count, 4, in, pitch, scale, out);
        return;
    case 8:
        interleave_streams(count, 8, in, pitch, scale, out);
        return;
    }
    for (int64_t s = 0; s < streams; s++)
        for (int64_t i = 0; i < count; i++)
            out[i * streams + s] = scale * in[s * pitch + i];
}

#include "cs_functions.h"
#include "cs_activations.h"
#include "cs_norms.h"
#include "cs_winograd.h"

#define CS_TABLE_NAME_(isa) cs_kernels_##isa
#define CS_TABLE_NAME(isa) CS_TABLE_NAME_(isa)
#define CS_TEXT_(isa) #isa
#define CS_TEXT(isa) CS_TEXT_(isa)

const struct cs_kernels CS_TABLE_NAME(CS_ISA) = {
    .isa = CS_TEXT(CS_ISA),
    .mr = CS_MR,
    .panels = CS_TILE_PANELS,
    .row_panels = CS_ROW_PANELS,
    .gemm = gemm,
    .depthwise = depthwise,
    .max_pool = max_pool,
    .average_pool = average_pool,
    .weighted_sum = weighted_sum,
    .lp_pool = lp_pool,
    .activate = activate,
    .prelu = prelu,
    .affine = affine,
    .combine = combine,
    .multiply_add = multiply_add,
    .interleave = interleave,
    .lrn = lrn,
    .softmax = softmax,
    .layer_norm = layer_norm,
    .lp_norm = lp_norm,
    .add_moments = add_moments,
    .winograd_input = winograd_input,
    .winograd_output = winograd_output,
};
