/* Normalisations, in double precision and without vectors: every instruction set computes the same; included by cs_body.h. */

/* the lanes of a sum, value c in lane c mod 16, in one fixed tree */
INLINE double tree_sum(double *lanes)
{
    for (int width = CS_PANEL / 2; width; width /= 2)
        for (int j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    return lanes[0];
}

#define SUM_OF(term)                                                                                  \
    double lanes[CS_PANEL] = {0};                                                                     \
    int64_t c = 0;                                                                                    \
    for (; c + CS_PANEL <= channels; c += CS_PANEL)                                                   \
        for (int j = 0; j < CS_PANEL; j++) {                                                          \
            const double x = in[c + j];                                                               \
            lanes[j] += (term);                                                                       \
        }                                                                                             \
    for (int j = 0; c + j < channels; j++) {                                                          \
        const double x = in[c + j];                                                                   \
        lanes[j] += (term);                                                                           \
    }                                                                                                 \
    return tree_sum(lanes);

INLINE double sum_of(int64_t channels, const float *in)
{
    SUM_OF(x)
}

INLINE double sum_of_magnitudes(int64_t channels, const float *in)
{
    SUM_OF(__builtin_fabs(x))
}

INLINE double sum_of_squares(int64_t channels, const float *in, double mean)
{
    SUM_OF((x - mean) * (x - mean))
}

static void layer_norm(int64_t channels, const float *in, const float *scale, const float *bias, float epsilon,
                       float *out)
{
    const double mean = sum_of(channels, in) / (double)channels;
    const double variance = sum_of_squares(channels, in, mean) / (double)channels;
    const double factor = 1.0 / __builtin_sqrt(variance + epsilon);
    for (int64_t c = 0; c < channels; c++)
        out[c] = (float)((in[c] - mean) * factor * scale[c] + bias[c]);
}

static void lp_norm(int64_t channels, int64_t p, const float *in, float epsilon, float *out)
{
    const double size =
        p == 1 ? sum_of_magnitudes(channels, in) : __builtin_sqrt(sum_of_squares(channels, in, 0.0));
    const double divisor = size < epsilon ? epsilon : size;
    for (int64_t c = 0; c < channels; c++)
        out[c] = (float)(in[c] / divisor);
}

static void add_moments(int64_t channels, const float *in, const double *mean, double *sums)
{
    if (!mean)
        for (int64_t c = 0; c < channels; c++)
            sums[c] += in[c];
    else
        for (int64_t c = 0; c < channels; c++)
            sums[c] += (in[c] - mean[c]) * (in[c] - mean[c]);
}
