from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Run, Share

cdef void max_pool_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void average_pool_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
