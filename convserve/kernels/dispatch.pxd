# The C contract of the micro-kernels, and the table chosen for this machine.
from libc.stdint cimport int64_t

cdef extern from "cs_kernels.h" nogil:
    enum:
        CS_PANEL
        CS_MR_MAX

    enum cs_type:
        CS_F32
        CS_F16
        CS_BF16

    enum cs_activation:
        CS_RELU
        CS_LEAKY_RELU
        CS_THRESHOLDED_RELU
        CS_ELU
        CS_CLIP
        CS_SIGMOID
        CS_HARD_SIGMOID
        CS_HARD_SWISH
        CS_SWISH
        CS_TANH
        CS_ERF
        CS_GELU
        CS_GELU_TANH
        CS_SOFTPLUS
        CS_SOFTSIGN
        CS_MISH
        CS_ABS
        CS_SIGN
        CS_SQRT
        CS_EXP
        CS_LOG
        CS_RECIPROCAL
        CS_POW

    enum cs_combination:
        CS_ADD
        CS_SUB
        CS_MUL
        CS_DIV
        CS_MAX
        CS_MIN

    struct cs_gemm_params:
        int64_t segments
        int64_t segment_length
        const float **a
        const void *b
        cs_type b_type
        int64_t panel_pitch
        const float *bias
        float **c
        const float **residual
        int64_t channel
        int64_t n
        int relu

    struct cs_kernels:
        const char *isa
        int mr
        int panels
        int row_panels
        void (*gemm)(const cs_gemm_params *, int) noexcept nogil
        void (*depthwise)(int64_t, int64_t, const float **, const float *, const float *, float *, int,
                          int) noexcept nogil
        void (*max_pool)(int64_t, int64_t, const float **, float *, int) noexcept nogil
        void (*average_pool)(int64_t, int64_t, const float **, float *, int, float) noexcept nogil
        void (*weighted_sum)(int64_t, int64_t, const float **, const float *, float *, int) noexcept nogil
        void (*lp_pool)(int64_t, int64_t, const float **, int64_t, float *, int, int) noexcept nogil
        void (*activate)(cs_activation, int64_t, const float *, float, float, float *) noexcept nogil
        void (*prelu)(int64_t, const float *, const float *, float *) noexcept nogil
        void (*affine)(int64_t, const float *, const float *, const float *, float *, int) noexcept nogil
        void (*combine)(cs_combination, int64_t, const float *, const float *, float *, int) noexcept nogil
        void (*multiply_add)(int64_t, int64_t, const float *, const float *, float *) noexcept nogil
        void (*interleave)(int64_t, int64_t, const float *, int64_t, float, float *) noexcept nogil
        void (*lrn)(int64_t, int64_t, int64_t, float, float, float, const float *, float *, float *) noexcept nogil
        void (*softmax)(int64_t, const float *, float *, int) noexcept nogil
        void (*layer_norm)(int64_t, const float *, const float *, const float *, float, float *) noexcept nogil
        void (*lp_norm)(int64_t, int64_t, const float *, float, float *) noexcept nogil
        void (*add_moments)(int64_t, const float *, const double *, double *) noexcept nogil
        void (*winograd_input)(int64_t, const float **, float *, int64_t) noexcept nogil
        void (*winograd_output)(const float *, int64_t, const float *, const float **, float **, int64_t, int64_t,
                                int, int) noexcept nogil

    const cs_kernels *cs_kernels_named(const char *isa)


cdef const cs_kernels *table(str isa) except NULL
