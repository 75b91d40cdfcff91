/* The contract of the micro-kernels: one table of functions per instruction set.
 *
 * All values are float32. Pointers may have any alignment unless said otherwise. No function
 * allocates, starts a thread or reads a global. `channels` values of a pixel lie in one run.
 */
#ifndef CS_KERNELS_H
#define CS_KERNELS_H

#include <stdint.h>

#define CS_PANEL 16   /* output channels of one weight panel */
#define CS_MR_MAX 16  /* pitch of the pointer rows below */

/* One tile of C = A * B + bias (+ residual), then the activation.
 *
 * For pixel i < m and channel j < n:
 *   c[i][channel + j] = act(bias[j] + sum over s, t of a[s*CS_MR_MAX + i][t] * B(s*segment_length + t, j)
 *                           + residual[i][channel + j])
 * in one chain over (s, t); B(k, j) = b[(j / 16) * panel_pitch + k * 16 + j % 16].
 * b and bias are 64-byte aligned and hold whole panels of 16 channels; n may be less.
 */
struct cs_gemm_params {
    int64_t segments;
    int64_t segment_length;
    const float *const *a;
    const float *b;
    int64_t panel_pitch;
    const float *bias;
    float *const *c;
    const float *const *residual; /* NULL: none */
    int64_t channel;
    int64_t n;
    int relu;
};

struct cs_kernels {
    const char *isa;
    int mr;     /* most pixels of a gemm tile */
    int panels; /* most panels of a gemm tile; n <= 16 * panels */

    void (*gemm)(const struct cs_gemm_params *params, int m);

    /* out[c] = act((first ? bias[c] : out[c]) + sum over t of in[t][c] * weights[t*channels + c]); the activation if last */
    void (*depthwise)(int64_t channels, int64_t taps, const float *const *in, const float *weights, const float *bias,
                      float *out, int first, int last_relu);
    /* out[c] = max of in[t][c] (and of out[c] unless first); a NaN wins */
    void (*max_pool)(int64_t channels, int64_t taps, const float *const *in, float *out, int first);
    /* out[c] = ((first ? 0 : out[c]) + sum over t of in[t][c]) / divisor; a divisor of 0 divides by nothing */
    void (*average_pool)(int64_t channels, int64_t taps, const float *const *in, float *out, int first, float divisor);

    void (*relu)(int64_t count, const float *in, float *out);
    void (*affine)(int64_t channels, const float *in, const float *scale, const float *shift, float *out, int relu);
    void (*add)(int64_t count, const float *a, const float *b, float *out, int relu);
    void (*mul)(int64_t count, const float *a, const float *b, float *out, int relu);

    /* out[c] = in[c] / (bias + scale * sum over j < size of in[c - below + j]^2)^beta, neighbours outside counting 0;
     * squares: room for channels + size + 16 values */
    void (*lrn)(int64_t channels, int64_t size, int64_t below, float scale, float beta, float bias, const float *in,
                float *squares, float *out);
    /* out[c] = exp(in[c] - max in) / sum of these */
    void (*softmax)(int64_t channels, const float *in, float *out);

    /* out[x*pitch + c] = (B^T D B)[x / 6][x % 6] with D[i][j] = in[i*6 + j][c]; out has room for whole vectors */
    void (*winograd_input)(int64_t channels, const float *const *in, float *out, int64_t pitch);
    /* out[i*4 + j][channel + c] = act((A^T M A)[i][j] + bias[c] + residual[i*4 + j][channel + c]) for c < n, with
     * M[i][j] = products[(i*6 + j)*pitch + c]; an out of NULL is left away; residual may be NULL */
    void (*winograd_output)(const float *products, int64_t pitch, const float *bias, const float *const *residual,
                            float *const *out, int64_t channel, int64_t n, int relu);
};

extern const struct cs_kernels cs_kernels_portable;
extern const struct cs_kernels cs_kernels_avx2;   /* x86-64 only */
extern const struct cs_kernels cs_kernels_avx512; /* x86-64 only */

/* Returns the table of that name, or NULL where this machine cannot run it. */
const struct cs_kernels *cs_kernels_named(const char *isa);

#endif
