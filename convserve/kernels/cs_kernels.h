/* The contract of the micro-kernels: one table of functions per instruction set.
 *
 * All values are float32 unless a type is given. Pointers may have any alignment unless said otherwise. No function
 * allocates, starts a thread or reads a global. `channels` values of a pixel lie in one run.
 */
#ifndef CS_KERNELS_H
#define CS_KERNELS_H

#include <stdint.h>

/* a float at any address */
typedef float AnyFloat __attribute__((aligned(1)));

#define CS_PANEL 16   /* output channels of one weight panel */
#define CS_MR_MAX 16  /* pitch of the pointer rows below */

/* What weights are stored as; each is widened to float32, exactly, as it is loaded. */
enum cs_type { CS_F32, CS_F16, CS_BF16, CS_TYPES };

/* Functions of one value x with the parameters a and b. */
enum cs_activation {
    CS_RELU,
    CS_LEAKY_RELU,       /* x < 0 ? a*x : x */
    CS_THRESHOLDED_RELU, /* x <= a ? 0 : x */
    CS_ELU,              /* b * (x > 0 ? x : a * (e^x - 1)) */
    CS_CLIP,             /* the nearest value of [a, b] */
    CS_SIGMOID,
    CS_HARD_SIGMOID, /* a*x + b within [0, 1] */
    CS_HARD_SWISH,
    CS_SWISH, /* x * sigmoid(a*x) */
    CS_TANH,
    CS_ERF,
    CS_GELU,
    CS_GELU_TANH,
    CS_SOFTPLUS,
    CS_SOFTSIGN,
    CS_MISH,
    CS_ABS,
    CS_SIGN,
    CS_SQRT,
    CS_EXP,
    CS_LOG,
    CS_RECIPROCAL,
    CS_POW, /* x^a */
};

enum cs_combination { CS_ADD, CS_SUB, CS_MUL, CS_DIV, CS_MAX, CS_MIN };

/* One tile of C = A * B + bias (+ residual), then the activation.
 *
 * For pixel i < m and channel j < n:
 *   c[i][channel + j] = act(bias[j] + sum over s, t of a[s*CS_MR_MAX + i][t] * B(s*segment_length + t, j)
 *                           + residual[i][channel + j])
 * in one chain over (s, t); B(k, j) = b[(j / 16) * panel_pitch + k * 16 + j % 16].
 * b and bias hold whole panels of 16 channels, each panel 32-byte aligned; n may be less. b's values are of b_type.
 */
struct cs_gemm_params {
    int64_t segments;
    int64_t segment_length;
    const float *const *a;
    const void *b;
    enum cs_type b_type;
    int64_t panel_pitch; /* values */
    const float *bias;
    float *const *c;
    const float *const *residual; /* NULL: none */
    int64_t channel;
    int64_t n;
    int relu;
};

struct cs_kernels {
    const char *isa;
    int mr;         /* most pixels of a gemm tile */
    int panels;     /* most panels of a gemm tile; n <= 16 * panels */
    int row_panels; /* the same of a tile of one pixel */

    void (*gemm)(const struct cs_gemm_params *params, int m);

    /* out[c] = act((first ? bias[c] : out[c]) + sum over t of in[t][c] * weights[t*channels + c]); the activation if last */
    void (*depthwise)(int64_t channels, int64_t taps, const float *const *in, const float *weights, const float *bias,
                      float *out, int first, int last_relu);
    /* out[c] = max of in[t][c] (and of out[c] unless first); a NaN wins */
    void (*max_pool)(int64_t channels, int64_t taps, const float *const *in, float *out, int first);
    /* out[c] = ((first ? 0 : out[c]) + sum over t of in[t][c]) / divisor; a divisor of 0 divides by nothing */
    void (*average_pool)(int64_t channels, int64_t taps, const float *const *in, float *out, int first, float divisor);
    /* out[c] = (first ? 0 : out[c]) + sum over t of in[t][c] * weights[t] */
    void (*weighted_sum)(int64_t channels, int64_t taps, const float *const *in, const float *weights, float *out,
                         int first);

    /* out[c] = (first ? 0 : out[c]) + sum over t of |in[t][c]|^p, of it the p-th root if last */
    void (*lp_pool)(int64_t channels, int64_t taps, const float *const *in, int64_t p, float *out, int first, int last);

    /* a NaN comes out of every activation but a power of 0 */
    void (*activate)(enum cs_activation kind, int64_t count, const float *in, float a, float b, float *out);
    /* out[c] = in[c] < 0 ? slope[c] * in[c] : in[c] */
    void (*prelu)(int64_t channels, const float *in, const float *slope, float *out);
    void (*affine)(int64_t channels, const float *in, const float *scale, const float *shift, float *out, int relu);
    /* a NaN on either side comes out */
    void (*combine)(enum cs_combination kind, int64_t count, const float *a, const float *b, float *out, int relu);

    /* out[j] += sum over t of x[t] * weights[t*n + j], one chain for each j < n */
    void (*multiply_add)(int64_t n, int64_t length, const float *x, const float *weights, float *out);

    /* out[i*streams + s] = scale * in[s*pitch + i] for i < count */
    void (*interleave)(int64_t count, int64_t streams, const AnyFloat *in, int64_t pitch, float scale, float *out);

    /* out[c] = in[c] / (bias + scale * sum over j < size of in[c - below + j]^2)^beta, neighbours outside counting 0;
     * squares: room for channels + size + 16 values */
    void (*lrn)(int64_t channels, int64_t size, int64_t below, float scale, float beta, float bias, const float *in,
                float *squares, float *out);
    /* out[c] = exp(in[c] - max in) / sum of these, or the logarithm of that */
    void (*softmax)(int64_t channels, const float *in, float *out, int logarithmic);
    /* out[c] = (in[c] - mean) / sqrt(variance + epsilon) * scale[c] + bias[c], mean and variance over the channels */
    void (*layer_norm)(int64_t channels, const float *in, const float *scale, const float *bias, float epsilon,
                       float *out);
    /* out[c] = in[c] / max(norm of in, epsilon), the norm a sum of magnitudes (p = 1) or the root of one of squares (2) */
    void (*lp_norm)(int64_t channels, int64_t p, const float *in, float epsilon, float *out);
    /* sums[c] += in[c], or (in[c] - mean[c])^2 where mean is not NULL */
    void (*add_moments)(int64_t channels, const float *in, const double *mean, double *sums);

    /* out[x*pitch + c] = (B^T D B)[x / 6][x % 6] with D[i][j] = in[i*6 + j][c]; out has room for whole vectors */
    void (*winograd_input)(int64_t channels, const float *const *in, float *out, int64_t pitch);
    /* out[i*tile + j][channel + c] = act((A^T M A)[i][j] + bias[c] + residual[i*tile + j][channel + c]) for c < n, with
     * M[i][j] = products[(i*6 + j)*pitch + c]; tile is 4 or 2; an out of NULL is left away; residual may be NULL */
    void (*winograd_output)(const float *products, int64_t pitch, const float *bias, const float *const *residual,
                            float *const *out, int64_t channel, int64_t n, int tile, int relu);
};

extern const struct cs_kernels cs_kernels_portable;
extern const struct cs_kernels cs_kernels_avx2;   /* x86-64 only */
extern const struct cs_kernels cs_kernels_avx512; /* x86-64 only */

/* Returns the table of that name, or NULL where this machine cannot run it. */
const struct cs_kernels *cs_kernels_named(const char *isa);

#endif
