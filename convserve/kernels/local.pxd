from convserve.kernels.rows cimport Op, Run, Share

cdef void local_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
