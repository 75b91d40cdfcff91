from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Run

cdef void conv_rows(const Op *op, const Run *run, int64_t begin, int64_t end, int64_t thread) noexcept nogil
cdef void depthwise_rows(const Op *op, const Run *run, int64_t begin, int64_t end, int64_t thread) noexcept nogil
