/* Activations: functions of one value with up to two parameters, and pooling by norms; included by cs_body.h, whose words it uses. */

/* e^x - 1 for x <= 88, as exact near 0 as far from it */
INLINE vec exponential_less_one(vec x)
{
    const vec low = cs_splat(-87.0f), high = cs_splat(88.0f), one = cs_splat(1.0f);
    vec y = blend(x < low, low, x);
    y = blend(y > high, high, y);
    vec n;
    const vec p = reduced_exponential(y, &n);
    const vec power = power_of_two(__builtin_convertvector(blend(x == x, n, cs_splat(0.0f)), ivec));
    return blend(x == x, cs_fma(power, p, power - one), x);
}

INLINE vec magnitude(vec x)
{
    return (vec)((ivec)x & 0x7fffffff);
}

INLINE vec with_sign_of(vec x, vec signed_one)
{
    return (vec)((ivec)x | ((ivec)signed_one & INT32_MIN));
}

INLINE vec between(vec x, float low, float high)
{
    const vec y = cs_at_least(cs_splat(low), x);
    return blend(y > cs_splat(high), cs_splat(high), y);
}

INLINE vec sigmoid(vec x)
{
    const vec one = cs_splat(1.0f);
    return one / (one + exponential(-x));
}

/* -t / (2 + t) with t = e^(-2|x|) - 1 */
INLINE vec hyperbolic_tangent(vec x)
{
    const vec t = exponential_less_one(cs_splat(-2.0f) * magnitude(x));
    return with_sign_of(magnitude(t / (cs_splat(2.0f) + t)), x);
}

/* x * p(x^2) up to 1, then 1 - e^q(x): fits of our own, absolute error 1e-9 before rounding */
INLINE vec error_function(vec x)
{
    const vec one = cs_splat(1.0f), four = cs_splat(4.0f);
    const vec z = magnitude(x), s = z * z;
    vec p = cs_splat(7.889119529e-05f);
    p = cs_fma(p, s, cs_splat(-0.0008020841279f));
    p = cs_fma(p, s, cs_splat(0.005189535339f));
    p = cs_fma(p, s, cs_splat(-0.02685444459f));
    p = cs_fma(p, s, cs_splat(0.1128360018f));
    p = cs_fma(p, s, cs_splat(-0.3761262714f));
    p = cs_fma(p, s, cs_splat(1.128379166f)) * z;
    const vec y = blend(z > four, four, z);
    vec q = cs_splat(0.0001855748947f);
    q = cs_fma(q, y, cs_splat(-0.002939615749f));
    q = cs_fma(q, y, cs_splat(0.02180535121f));
    q = cs_fma(q, y, cs_splat(-0.1030374356f));
    q = cs_fma(q, y, cs_splat(-0.6382256022f));
    q = cs_fma(q, y, cs_splat(-1.12704008f));
    q = cs_fma(q, y, cs_splat(-0.0003537089116f));
    return with_sign_of(blend(z < one, p, one - exponential(q)), x);
}

/* log(1 + e^x) = max(x, 0) + log(u) + (y - (u - 1)) / u with y = e^-|x|, u = 1 + y rounded */
INLINE vec softplus(vec x)
{
    const vec one = cs_splat(1.0f);
    const vec y = exponential(-magnitude(x)), u = one + y;
    return positive(x) + (logarithm(u) + (y - (u - one)) / u);
}

/* tanh(log(1 + e)) = n / (n + 2) with n = e * (e + 2), e = e^x */
INLINE vec mish(vec x)
{
    const vec high = cs_splat(20.0f), two = cs_splat(2.0f);
    const vec e = exponential(blend(x > high, high, x)), n = e * (e + two);
    return x * (n / (n + two));
}

/* gamma * (x > 0 ? x : alpha * (e^x - 1)) */
INLINE vec elu(vec x, float alpha, float gamma)
{
    const vec zero = cs_splat(0.0f);
    const vec below = cs_splat(alpha) * exponential_less_one(blend(x > zero, zero, x));
    return cs_splat(gamma) * blend(x > zero, x, below);
}

/* x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2 */
INLINE vec gelu_by_tanh(vec x)
{
    const vec cubic = cs_fma(cs_splat(0.044715f) * x * x, x, x);
    const vec one = cs_splat(1.0f), half = cs_splat(0.5f) * x;
    return half * (one + hyperbolic_tangent(cs_splat(0.797884561f) * cubic));
}

INLINE vec natural_logarithm(vec x)
{
    const vec zero = cs_splat(0.0f), infinity = cs_splat(__builtin_inff());
    vec y = blend(x == zero, -infinity, logarithm(x));
    y = blend(x == infinity, x, y);
    return blend((x < zero) | (x != x), cs_splat(__builtin_nanf("")), y);
}

/* x^exponent: products where the exponent is whole */
INLINE vec power(vec x, float exponent)
{
    const vec one = cs_splat(1.0f);
    const float size = __builtin_fabsf(exponent);
    if (size > (1 << 20) || size != (float)(int)size)
        return negative_power(x, -exponent);
    vec result = one, factor = x;
    for (int left = (int)size; left; left >>= 1) {
        if (left & 1)
            result *= factor;
        factor *= factor;
    }
    return exponent < 0 ? one / result : result;
}

#define ACTIVATE(y)                                                                                   \
    for (int64_t i = 0; i < count; i += CS_LANES) {                                                   \
        const int64_t left = count - i;                                                               \
        const vec x = left < CS_LANES ? load_first(in + i, left) : load(in + i);                      \
        if (left < CS_LANES)                                                                          \
            store_first(out + i, y, left);                                                            \
        else                                                                                          \
            store(out + i, y);                                                                        \
    }                                                                                                 \
    return;

static void activate(enum cs_activation kind, int64_t count, const float *in, float a, float b, float *out)
{
    const vec zero = cs_splat(0.0f), one = cs_splat(1.0f), half = cs_splat(0.5f);
    switch (kind) {
    case CS_RELU:
        ACTIVATE(positive(x))
    case CS_LEAKY_RELU:
        ACTIVATE(blend(x < zero, cs_splat(a) * x, x))
    case CS_THRESHOLDED_RELU:
        ACTIVATE(blend(x <= cs_splat(a), zero, x))
    case CS_ELU:
        ACTIVATE(elu(x, a, b))
    case CS_CLIP:
        ACTIVATE(between(x, a, b))
    case CS_SIGMOID:
        ACTIVATE(sigmoid(x))
    case CS_HARD_SIGMOID:
        ACTIVATE(between(cs_fma(cs_splat(a), x, cs_splat(b)), 0.0f, 1.0f))
    case CS_HARD_SWISH:
        ACTIVATE(x * between(cs_fma(cs_splat(1.0f / 6.0f), x, half), 0.0f, 1.0f))
    case CS_SWISH:
        ACTIVATE(x / (one + exponential(cs_splat(-a) * x)))
    case CS_TANH:
        ACTIVATE(hyperbolic_tangent(x))
    case CS_ERF:
        ACTIVATE(error_function(x))
    case CS_GELU:
        ACTIVATE(half * x * (one + error_function(cs_splat(0.707106781f) * x)))
    case CS_GELU_TANH:
        ACTIVATE(gelu_by_tanh(x))
    case CS_SOFTPLUS:
        ACTIVATE(softplus(x))
    case CS_SOFTSIGN:
        ACTIVATE(x / (one + magnitude(x)))
    case CS_MISH:
        ACTIVATE(mish(x))
    case CS_ABS:
        ACTIVATE(magnitude(x))
    case CS_SIGN:
        ACTIVATE(blend(x > zero, one, blend(x < zero, -one, x)))
    case CS_SQRT:
        ACTIVATE(cs_sqrt(x))
    case CS_EXP:
        ACTIVATE(exponential(x))
    case CS_LOG:
        ACTIVATE(natural_logarithm(x))
    case CS_RECIPROCAL:
        ACTIVATE(one / x)
    case CS_POW:
        ACTIVATE(power(x, a))
    }
}

static void prelu(int64_t channels, const float *in, const float *slope, float *out)
{
    const vec zero = cs_splat(0.0f);
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c;
        const vec x = left < CS_LANES ? load_first(in + c, left) : load(in + c);
        const vec factor = left < CS_LANES ? load_first(slope + c, left) : load(slope + c);
        const vec y = blend(x < zero, factor * x, x);
        if (left < CS_LANES)
            store_first(out + c, y, left);
        else
            store(out + c, y);
    }
}

/* |x|^p for a whole p */
INLINE vec power_of_magnitude(vec x, int64_t p)
{
    const vec factor = magnitude(x);
    vec product = factor;
    for (int64_t i = 1; i < p; i++)
        product *= factor;
    return product;
}

static void lp_pool(int64_t channels, int64_t taps, const float *const *in, int64_t p, float *out, int first, int last)
{
    for (int64_t c = 0; c < channels; c += CS_LANES) {
        const int64_t left = channels - c < CS_LANES ? channels - c : CS_LANES;
        vec sum = first ? cs_splat(0.0f) : load_first(out + c, left);
        for (int64_t t = 0; t < taps; t++) {
            const vec x = left == CS_LANES ? load(in[t] + c) : load_first(in[t] + c, left);
            sum = p == 2 ? cs_fma(x, x, sum) : sum + power_of_magnitude(x, p);
        }
        if (last && p > 1)
            sum = p == 2 ? cs_sqrt(sum) : negative_power(sum, -1.0f / (float)p);
        store_first(out + c, sum, left);
    }
}
