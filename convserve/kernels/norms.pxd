from convserve.kernels.rows cimport Op, Run, Share

cdef void group_statistics_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void group_normalize_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
