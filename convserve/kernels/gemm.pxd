from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Run, Share

cdef bint split_panels(const Run *run, const Share *share, int64_t panels, int64_t weights, int64_t activations,
                       int64_t *first, int64_t *last) noexcept nogil
cdef void conv_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void depthwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
