from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Ring, Run, Share

cdef void pixelwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void activation_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void combine_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void read_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void write_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void zero_padding(const Ring *ring, int64_t images) noexcept nogil
cdef void poison_rows(const Ring *ring, int64_t images, int64_t begin, int64_t end) noexcept nogil

cdef enum:
    COPY
    PRELU
    AFFINE
    SOFTMAX
    LOG_SOFTMAX
    LAYER_NORM
    LP_NORM
    SHUFFLE
