/* The micro-kernels and vector loops, written once; each cs_<isa>.c includes this after defining
 *   CS_ISA (name), CS_LANES (floats of a vector), CS_MR, CS_TILE_PANELS, and cs_fma, cs_splat, cs_sqrt on vectors.
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
    vec v = {0};
    memcpy(&v, p, count * sizeof(float));
    return v;
}

INLINE void store_first(float *p, vec v, int64_t count)
{
    memcpy(p, &v, count * sizeof(float));
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

/* ---- exp and log: range reduction and a polynomial of our own fit (relative error 1e-8 before rounding) ---- */

INLINE vec power_of_two(ivec n)
{
    return (vec)((n + 127) << 23);
}

INLINE vec exponential(vec x)
{
    const vec low = cs_splat(-104.0f), high = cs_splat(89.0f);
    vec y = blend(x < low, low, x);
    y = blend(y > high, high, y);
    /* adding and taking away 1.5 * 2^23 rounds to a whole number */
    const vec shift = cs_splat(12582912.0f);
    const vec n = cs_fma(y, cs_splat(1.44269504f), shift) - shift;
    vec r = cs_fma(n, cs_splat(-0.693145751953125f), y);
    r = cs_fma(n, cs_splat(-1.42860677e-6f), r);
    vec p = cs_splat(0.0013926926614f);
    p = cs_fma(p, r, cs_splat(0.00836377387441f));
    p = cs_fma(p, r, cs_splat(0.0416665501103f));
    p = cs_fma(p, r, cs_splat(0.166665733819f));
    p = cs_fma(p, r, cs_splat(0.5f));
    p = cs_fma(p * r, r, r) + cs_splat(1.0f);
    /* a NaN has no whole number; 0 stands in until it is put back below */
    const ivec k = __builtin_convertvector(blend(x == x, n, cs_splat(0.0f)), ivec);
    const ivec half = k >> 1;
    const vec result = p * power_of_two(half) * power_of_two(k - half);
    return blend(x == x, result, x);
}

/* natural logarithm of x > 0 */
INLINE vec logarithm(vec x)
{
    const ivec denormal = x < cs_splat(1.17549435e-38f);
    const vec y = blend(denormal, x * cs_splat(8388608.0f), x);
    const ivec bits = (ivec)y;
    /* the mantissa is brought into [sqrt(1/2), sqrt(2)) */
    const ivec e = (bits - 0x3f3504f3) >> 23;
    const vec t = (vec)(bits - (e << 23)) - cs_splat(1.0f);
    vec p = cs_splat(0.0697161147145f);
    p = cs_fma(p, t, cs_splat(-0.114797338466f));
    p = cs_fma(p, t, cs_splat(0.116854199235f));
    p = cs_fma(p, t, cs_splat(-0.124256873315f));
    p = cs_fma(p, t, cs_splat(0.142490576457f));
    p = cs_fma(p, t, cs_splat(-0.166678023195f));
    p = cs_fma(p, t, cs_splat(0.200007157489f));
    p = cs_fma(p, t, cs_splat(-0.24999996958f));
    p = cs_fma(p, t, cs_splat(0.3333333118f));
    const vec n = __builtin_convertvector(e - (denormal & 23), vec);
    vec sum = cs_fma(p, t, cs_splat(-0.5f));
    sum = cs_fma(sum, t * t, t);
    sum = cs_fma(n, cs_splat(1.42860677e-6f), sum);
    return cs_fma(n, cs_splat(0.693145751953125f), sum);
}

/* x^-beta; NaN for x < 0 and infinity for 0, as the formula says */
INLINE vec negative_power(vec x, float beta)
{
    const vec one = cs_splat(1.0f);
    if (beta == 0.75f) {
        const vec root = cs_sqrt(x);
        return one / (root * cs_sqrt(root));
    }
    if (beta == 0.5f)
        return one / cs_sqrt(x);
    if (beta == 1.0f)
        return one / x;
    const vec zero = cs_splat(0.0f);
    vec y = exponential(cs_splat(-beta) * logarithm(x));
    y = blend(x == zero, beta > 0 ? one / zero : (beta < 0 ? zero : one), y);
    y = blend(x == one / zero, beta > 0 ? zero : (beta < 0 ? one / zero : one), y);
    return blend((x < zero) | (x != x), cs_splat(beta == 0.0f ? 1.0f : __builtin_nanf("")), y);
}

static void lrn(int64_t channels, int64_t size, int64_t below, float scale, float beta, float bias, const float *in,
                float *squares, float *out)
{
    memset(squares, 0, below * sizeof(float));
    for (int64_t c = 0; c < channels; c++)
        squares[below + c] = in[c] * in[c];
    memset(squares + below + channels, 0, (size - below + CS_LANES) * sizeof(float));
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c < CS_LANES ? channels - c : CS_LANES;
        vec sum = load(squares + c);
        for (int64_t j = 1; j < size; j++)
            sum += load(squares + c + j);
        const vec divisor = cs_fma(cs_splat(scale), sum, cs_splat(bias));
        const vec x = left == CS_LANES ? load(in + c) : load_first(in + c, left);
        const vec y = x * negative_power(divisor, beta);
        if (left == CS_LANES)
            store(out + c, y);
        else
            store_first(out + c, y, left);
    }
}

/* Channel c is summed in lane c mod 16, then the lanes in one fixed tree. */
static void softmax(int64_t channels, const float *in, float *out)
{
    float most = in[0];
    for (int64_t c = 1; c < channels; c++)
        most = in[c] > most || in[c] != in[c] ? in[c] : most;
    float lanes[CS_PANEL] __attribute__((aligned(64))) = {0};
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c < CS_LANES ? channels - c : CS_LANES;
        const vec y = exponential((left == CS_LANES ? load(in + c) : load_first(in + c, left)) - cs_splat(most));
        float *lane = lanes + c % CS_PANEL;
        if (left == CS_LANES) {
            store(out + c, y);
            store(lane, load(lane) + y);
        } else {
            store_first(out + c, y, left);
            store_first(lane, load_first(lane, left) + y, left);
        }
    }
    for (int width = CS_PANEL / 2; width; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    const vec total = cs_splat(lanes[0]);
    LOOP(channels, load(out + i) / total, load_first(out + i, channels - i) / total)
}

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
};
