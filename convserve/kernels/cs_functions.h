/* exp, log and powers as polynomials of our own, and what is made of them; included by cs_body.h, whose words it uses. */

/* Range reduction and a polynomial of our own fit (relative error 1e-8 before rounding) */

INLINE vec power_of_two(ivec n)
{
    return (vec)((n + 127) << 23);
}

/* e^r - 1 for y = n * log(2) + r with n the nearest whole number */
INLINE vec reduced_exponential(vec y, vec *whole)
{
    /* adding and taking away 1.5 * 2^23 rounds to a whole number */
    const vec shift = cs_splat(12582912.0f);
    const vec n = cs_fma(y, cs_splat(1.44269504f), shift) - shift;
    vec r = cs_fma(n, cs_splat(-0.693145751953125f), y);
    r = cs_fma(n, cs_splat(-1.42860677e-6f), r);
    *whole = n;
    vec p = cs_splat(0.0013926926614f);
    p = cs_fma(p, r, cs_splat(0.00836377387441f));
    p = cs_fma(p, r, cs_splat(0.0416665501103f));
    p = cs_fma(p, r, cs_splat(0.166665733819f));
    p = cs_fma(p, r, cs_splat(0.5f));
    return cs_fma(p * r, r, r);
}

INLINE vec exponential(vec x)
{
    const vec low = cs_splat(-104.0f), high = cs_splat(89.0f);
    vec y = blend(x < low, low, x);
    y = blend(y > high, high, y);
    vec n;
    const vec p = reduced_exponential(y, &n) + cs_splat(1.0f);
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
static void softmax(int64_t channels, const float *in, float *out, int logarithmic)
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
            if (!logarithmic)
                store(out + c, y);
            store(lane, load(lane) + y);
        } else {
            if (!logarithmic)
                store_first(out + c, y, left);
            store_first(lane, load_first(lane, left) + y, left);
        }
    }
    for (int width = CS_PANEL / 2; width; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    if (logarithmic) {
        const vec shift = cs_splat(most), rest = logarithm(cs_splat(lanes[0]));
        LOOP(channels, load(in + i) - shift - rest, load_first(in + i, channels - i) - shift - rest)
        return;
    }
    const vec total = cs_splat(lanes[0]);
    LOOP(channels, load(out + i) / total, load_first(out + i, channels - i) / total)
}
