# The C contract of the micro-kernels, and the table chosen for this machine.
from libc.stdint cimport int64_t

cdef extern from "cs_kernels.h" nogil:
    enum:
        CS_PANEL
        CS_MR_MAX

    struct cs_gemm_params:
        int64_t segments
        int64_t segment_length
        const float **a
        const float *b
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
        void (*gemm)(const cs_gemm_params *, int) noexcept nogil
        void (*depthwise)(int64_t, int64_t, const float **, const float *, const float *, float *, int,
                          int) noexcept nogil
        void (*max_pool)(int64_t, int64_t, const float **, float *, int) noexcept nogil
        void (*average_pool)(int64_t, int64_t, const float **, float *, int, float) noexcept nogil
        void (*relu)(int64_t, const float *, float *) noexcept nogil
        void (*affine)(int64_t, const float *, const float *, const float *, float *, int) noexcept nogil
        void (*add)(int64_t, const float *, const float *, float *, int) noexcept nogil
        void (*mul)(int64_t, const float *, const float *, float *, int) noexcept nogil
        void (*lrn)(int64_t, int64_t, int64_t, float, float, float, const float *, float *, float *) noexcept nogil
        void (*softmax)(int64_t, const float *, float *) noexcept nogil
        void (*winograd_input)(int64_t, const float **, float *, int64_t) noexcept nogil
        void (*winograd_output)(const float *, int64_t, const float *, const float **, float **, int64_t, int64_t,
                                int) noexcept nogil

    const cs_kernels *cs_kernels_named(const char *isa)


cdef const cs_kernels *table(str isa) except NULL
