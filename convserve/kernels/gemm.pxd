from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Run, Share

cdef void conv_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void depthwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
