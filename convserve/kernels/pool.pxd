from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Run, Share

cdef void pool_rows(const Op *op, const Run *run, const Share *share) noexcept nogil

cdef enum:
    MAX_POOL
    AVERAGE_POOL
    LP_POOL
